"""Config group ``imagination``."""
