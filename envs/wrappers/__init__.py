"""Wrappers of text environments: ``X`` of the single env, ``VectorX`` of the vector env, to the same effect.

The names stand in ``worldmtp.envs``. Gymnasium's own wrappers go over them and under them.
"""
