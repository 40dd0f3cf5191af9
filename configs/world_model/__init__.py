"""Config group ``world_model``."""
