"""Config group ``head``: families of heads, set in ``model.head`` and ``model.head_spec``."""
