"""Config group ``profile``."""
