"""Wrappers of the vector text environment; a single environment gets them around its row.

The names stand in ``worldmtp.envs`` and, for configs, in ``worldmtp.envs.text_env``. ``Autoreset`` goes over them all.
"""
