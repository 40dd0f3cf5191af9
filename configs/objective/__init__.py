"""Config group ``objective``: each file holds what differs from the defaults of ``MTPObjective``."""
