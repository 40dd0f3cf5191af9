"""Config group ``agent``."""
