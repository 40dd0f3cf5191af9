"""Config group ``env``."""
