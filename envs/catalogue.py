"""The tasks that come with the package, as kwargs of their environments: budgets and vocabularies fit their alphabets.

Lengths are exact upper bounds, so that no row is wider than it must be: a small model pays for every column.
"""

import string
from typing import Any

from worldmtp.envs.registry import register_builtin, register_env

_COPY = "worldmtp.envs.tasks.copy:Copy"
_REVERSE = "worldmtp.envs.tasks.copy:Reverse"
_PATH_STAR = "worldmtp.envs.tasks.path_star:PathStar"
_RANDOM_DIGITS = "worldmtp.envs.tasks.random_digits:RandomDigits"
_REASONING_GYM = "worldmtp.envs.tasks.reasoning_gym:ReasoningGymTask"


def _alphabet(characters: str) -> dict[str, str]:
    return {"kind": "char", "alphabet": characters}


BUILTIN_TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "Copy": (_COPY, {"tokenizer": _alphabet("abcdefghij="), "max_prompt": 9, "max_new": 9}),
    "Reverse": (_REVERSE, {"tokenizer": _alphabet("abcdefghij="), "max_prompt": 9, "max_new": 9}),
    "RandomDigits": (_RANDOM_DIGITS, {"tokenizer": _alphabet("0123456789="), "max_prompt": 5, "max_new": 9}),
    "PathStar": (
        _PATH_STAR,
        {
            "task_kwargs": {"degree": 2, "length": 5, "num_names": 9},
            "tokenizer": _alphabet("abcdefghi="),
            "max_prompt": 19,
            "max_new": 5,
        },
    ),
    "SpellBackward": (
        _REASONING_GYM,
        {
            "task_kwargs": {"dataset": "spell_backward", "min_word_len": 3, "max_word_len": 6},
            "tokenizer": _alphabet(string.ascii_letters + "="),
            "max_prompt": 7,
            "max_new": 7,
        },
    ),
    "ChainSum": (
        _REASONING_GYM,
        {
            "task_kwargs": {"dataset": "chain_sum", "min_terms": 2, "max_terms": 3, "max_digits": 2, "drop": " "},
            "tokenizer": _alphabet("0123456789+-="),
            "max_prompt": 9,
            "max_new": 5,
        },
    ),
    "CaesarCipher": (
        _REASONING_GYM,
        {
            "task_kwargs": {"dataset": "caesar_cipher", "min_words": 1, "max_words": 2},
            "tokenizer": _alphabet(string.ascii_uppercase + " ="),
            "max_prompt": 24,
            "max_new": 24,
        },
    ),
}
"""Name to (factory, environment kwargs)."""

REASONING_GYM_ENV = {"task": "chain_sum", "tokenizer": "char", "max_prompt": 128, "max_new": 64}
"""Kwargs of worldmtp/ReasoningGym-v0: pass ``task`` and ``task_kwargs``, and budgets to fit."""


def register_catalogue() -> None:
    """Register all of them."""
    for name, (factory, env_kwargs) in BUILTIN_TASKS.items():
        register_builtin(name, factory, env_kwargs)
    register_env("ReasoningGym", REASONING_GYM_ENV)
