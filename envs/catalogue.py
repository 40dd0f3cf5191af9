"""The tasks that come with the package, as kwargs of their environments: budgets and vocabularies fit their alphabets.

Lengths are exact upper bounds, so that no row is wider than it must be: a small model pays for every column.
"""

import string
from typing import Any

from worldmtp.envs.registry import register_builtin, register_env, register_turn_env
from worldmtp.envs.tokenizer import DEFAULT_ALPHABET
from worldmtp.envs.worlds.catalogue import TURN_ENV, TURN_ENV_ID, WORLD_TASKS

_COPY = "worldmtp.envs.tasks.copy:Copy"
_REVERSE = "worldmtp.envs.tasks.copy:Reverse"
_PATH_STAR = "worldmtp.envs.tasks.path_star:PathStar"
_RANDOM_DIGITS = "worldmtp.envs.tasks.random_digits:RandomDigits"
_REWARD_MODEL = "worldmtp.envs.tasks.reward_model:RewardModelTask"
_REASONING_GYM = "worldmtp.envs.tasks.reasoning_gym:ReasoningGymTask"
_BRACKETS = "worldmtp.envs.tasks.brackets:Brackets"
_INCREASING_NUMBERS = "worldmtp.envs.tasks.increasing_numbers:IncreasingNumbers"
_COUNTDOWN = "worldmtp.envs.tasks.countdown:Countdown"
_CORPUS = "worldmtp.envs.tasks.corpus:CorpusTask"
_DATA = "worldmtp.envs.tasks.data:DataTask"

_CORPUS_ALPHABET = DEFAULT_ALPHABET + "\n"


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
    "Brackets": (_BRACKETS, {"tokenizer": _alphabet("()[]45678="), "max_prompt": 8, "max_new": 16}),
    "IncreasingNumbers": (
        _INCREASING_NUMBERS,
        {"tokenizer": _alphabet("0123456789 ="), "max_prompt": 9, "max_new": 15},
    ),
    "Countdown": (_COUNTDOWN, {"tokenizer": _alphabet("0123456789+-*(),:="), "max_prompt": 11, "max_new": 12}),
    "Corpus": (
        _CORPUS,
        {
            "task_kwargs": {"prompt_chars": 32, "answer_chars": 8, "alphabet": _CORPUS_ALPHABET},
            "tokenizer": _alphabet(_CORPUS_ALPHABET),
            "max_prompt": 32,
            "max_new": 9,
        },
    ),
    # These two are nothing without task_kwargs; pass budgets to fit.
    "Data": (_DATA, {"tokenizer": "char", "max_prompt": 256, "max_new": 64}),
    "RewardModel": (_REWARD_MODEL, {"tokenizer": "char", "max_prompt": 256, "max_new": 64}),
    **WORLD_TASKS,
}
"""Name to (factory, environment kwargs)."""

REASONING_GYM_ENV = {"task": "chain_sum", "tokenizer": "char", "max_prompt": 128, "max_new": 64}
"""Kwargs of worldmtp/ReasoningGym-v0: pass ``task`` and ``task_kwargs``, and budgets to fit."""


def register_catalogue() -> None:
    """Register all of them."""
    for name, (factory, env_kwargs) in BUILTIN_TASKS.items():
        register_builtin(name, factory, env_kwargs)
    register_env("ReasoningGym", REASONING_GYM_ENV)
    register_turn_env(TURN_ENV_ID, TURN_ENV)
