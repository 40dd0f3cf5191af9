"""Config group ``logger``."""
