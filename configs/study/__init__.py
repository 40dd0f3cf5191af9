"""Config group ``study``: comparisons over several trained models; each file lists its study's fields."""
