"""The tasks that come with the package, as kwargs of their environments: budgets and vocabularies fit their alphabets.

Lengths are exact upper bounds, so that no row is wider than it must be: a small model pays for every column. Of worlds
``max_new`` is the exact room for ``max_turns`` turns of ``max_turn`` tokens each, with their longest replies, so a row
is never full before the world is done. A turn may be one token longer than it need be, EOS included.
``probe_bound`` is a bound of the mean return of the best constant turn, where one earns anything.
"""

import string
from typing import Any

from worldmtp.envs.registry import WORLD_TASK, register_builtin, register_env, register_turn_env
from worldmtp.envs.tokenizer import DEFAULT_ALPHABET

_CORPUS_ALPHABET = DEFAULT_ALPHABET + "\n"


def _task(
    task: str, alphabet: str | None, task_kwargs: dict[str, Any] | None = None, *, max_prompt: int, max_new: int
) -> tuple[str, dict[str, Any]]:
    """A task of ``envs.tasks``; without an alphabet its texts are printable ASCII."""
    return f"worldmtp.envs.tasks.{task}", {
        **({"task_kwargs": task_kwargs} if task_kwargs else {}),
        "tokenizer": "char" if alphabet is None else {"kind": "char", "alphabet": alphabet},
        "max_prompt": max_prompt,
        "max_new": max_new,
    }


def _world(
    world: str,
    world_kwargs: dict[str, Any],
    alphabet: str,
    *,
    max_prompt: int,
    max_turns: int,
    max_turn: int,
    max_reply: int,
    **task_kwargs: Any,
) -> tuple[str, dict[str, Any]]:
    return WORLD_TASK, {
        "task_kwargs": {"world": f"worldmtp.envs.worlds.{world}", "world_kwargs": world_kwargs, **task_kwargs},
        "tokenizer": {"kind": "char", "alphabet": alphabet},
        "max_prompt": max_prompt,
        "max_turn": max_turn,
        "max_new": max_turns * (max_turn + max_reply),
    }


def _lake(size: int, max_turns: int, success_rate: float | None = None) -> tuple[str, dict[str, Any]]:
    """A lake of gymnasium's, always the same: the map is not told. Without a success rate it is not slippery."""
    ice: dict[str, Any] = {"is_slippery": False} if success_rate is None else {"success_rate": success_rate}
    return _world(
        "toy_text:ToyText",
        {
            "game": "FrozenLake",
            "env_kwargs": {"map_name": f"{size}x{size}", **ice},
            "max_turns": max_turns,
            "tells_map": False,
        },
        string.digits[:size] + "HGldru?",
        max_prompt=2,
        max_turns=max_turns,
        max_turn=3,
        max_reply=3,
        probe_bound=0.0 if success_rate is None else 0.25,
    )


def _taxi(env_kwargs: dict[str, Any], **task_kwargs: Any) -> tuple[str, dict[str, Any]]:
    return _world(
        "toy_text:ToyText",
        {"game": "Taxi", "env_kwargs": env_kwargs, "max_turns": 30},
        "01234RGYBTsnewpd?",
        max_prompt=4,
        max_turns=30,
        max_turn=3,
        max_reply=4,
        **task_kwargs,
    )


def _exact(alphabet: str, source: str, prefix_length: int = 12, answer_length: int = 8) -> tuple[str, dict[str, Any]]:
    """Texts of a source whose law is known; the prompt has the goal, the separator and the prefix."""
    kwargs = {"source": source, "prefix_length": prefix_length, "answer_length": answer_length}
    budgets = {"max_prompt": prefix_length + 2, "max_new": answer_length + 1}
    return _task("exact_world:ExactWorld", alphabet + ":", kwargs, **budgets)


LAKES: dict[str, tuple[str, dict[str, Any]]] = {
    "FrozenLake": _lake(4, 25),
    "FrozenLakeSlippery": _lake(4, 30, 0.8),
    "FrozenLakeIcy": _lake(4, 40, 1 / 3),
    "FrozenLake8x8": _lake(8, 50),
    "FrozenLake8x8Slippery": _lake(8, 60, 0.8),
    "FrozenLake8x8Icy": _lake(8, 100, 1 / 3),
}
"""A move goes where it is meant to, or slips to either side: in .2 of the moves, or in two of three as in gymnasium."""

WORLD_TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    # 4 guesses at worst among 15 numbers, and twice that in all. The number of (range, number) pairs is the sum of
    # size (101 - size) over sizes 4..15.
    "GuessNumber": _world(
        "guess_number:GuessNumber",
        {"max_number": 99, "min_size": 4, "max_size": 15},
        "0123456789-:<>=?",
        max_prompt=6,
        max_turns=8,
        max_turn=4,
        max_reply=1,
        probe_bound=0.02,
        universe_size=10288,
    ),
    "GridWorld": _world(
        "grid_world:GridWorld",
        {"size": 4, "wall_probability": 0.25, "max_turns": 16},
        "nesw#.G?",
        max_prompt=4,
        max_turns=16,
        max_turn=3,
        max_reply=4,
        probe_bound=0.15,
    ),
    "Pig": _world(
        "dice:Pig",
        {"min_target": 8, "max_target": 20, "min_decisions": 4, "max_decisions": 10},
        "0123456789/:rh?",
        max_prompt=6,
        max_turns=10,
        max_turn=3,
        max_reply=2,
    ),
    **LAKES,
    "FrozenLakeRandom": _world(
        "toy_text:ToyText",
        {"game": "FrozenLake", "random_map": {"size": 4, "p": 0.7}, "max_turns": 24},
        "SFHG/0123ldru?",
        max_prompt=19,
        max_turns=24,
        max_turn=3,
        max_reply=3,
        probe_bound=0.25,
    ),
    # The start is one of ten, and what is said to it is all that is not the same in every episode.
    "KeyDoor": _world(
        "key_door:KeyDoor",
        {"max_turns": 30},
        "01234.kGnesw?",
        max_prompt=3,
        max_turns=30,
        max_turn=3,
        max_reply=3,
    ),
    # The opening is always the same, as on the lakes; what is hidden is each episode's own.
    "Switches": _world(
        "switches:Switches",
        {"num_switches": 4, "max_turns": 20},
        "01234abcd?",
        max_prompt=1,
        max_turns=20,
        max_turn=3,
        max_reply=1,
    ),
    "Taxi": _taxi({"is_rainy": True}),
    "TaxiDry": _taxi({}, universe_size=300),  # 25 places of the taxi, 4 of the passenger, 3 other goals
    "Blackjack": _world(
        "toy_text:ToyText",
        {"game": "Blackjack", "max_turns": 8},
        "0123456789a:+-=sh?",
        max_prompt=5,
        max_turns=8,
        max_turn=3,
        max_reply=6,
        probe_bound=0.5,
    ),
}
"""Name to (factory, environment kwargs)."""

WORLD_MOVES = {
    "GridWorld": "nesw",
    "Pig": "rh",
    **dict.fromkeys([*LAKES, "FrozenLakeRandom"], "ldru"),
    "KeyDoor": "nesw",
    "Switches": "abcd",
    **dict.fromkeys(["Taxi", "TaxiDry"], "snewpd"),
    "Blackjack": "sh",
}
"""Name to the characters that are the moves of a world whose turn is one move."""

EXACT_WORLDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Mess3": _exact("ABC", "mess3"),
    "Markov": _exact("ABCDE", "markov"),
    "Factorial": _exact("ABCDEF", "factorial", prefix_length=16),
    "BlockWords": _exact("ABCDEFGHI", "block"),
    "Dyck": _exact("([)].", "dyck"),
    "TinyEnum": _exact("ABC", "mess3", answer_length=4),
}
"""Name to (factory, environment kwargs) of texts whose law is known; the 81 answers of TinyEnum can be enumerated."""

BUILTIN_TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "Copy": _task("strings:Copy", "abcdefghij=", max_prompt=9, max_new=9),
    "Reverse": _task("strings:Reverse", "abcdefghij=", max_prompt=9, max_new=9),
    "RandomDigits": _task("strings:RandomDigits", "0123456789=", max_prompt=5, max_new=9),
    "PathStar": _task(
        "path_star:PathStar", "abcdefghi=", {"degree": 2, "length": 5, "num_names": 9}, max_prompt=19, max_new=5
    ),
    "SpellBackward": _task(
        "reasoning_gym:ReasoningGymTask",
        string.ascii_letters + "=",
        {"dataset": "spell_backward", "min_word_len": 3, "max_word_len": 6},
        max_prompt=7,
        max_new=7,
    ),
    "ChainSum": _task(
        "reasoning_gym:ReasoningGymTask",
        "0123456789+-=",
        {"dataset": "chain_sum", "min_terms": 2, "max_terms": 3, "max_digits": 2, "drop": " "},
        max_prompt=9,
        max_new=5,
    ),
    "CaesarCipher": _task(
        "reasoning_gym:ReasoningGymTask",
        string.ascii_uppercase + " =",
        {"dataset": "caesar_cipher", "min_words": 1, "max_words": 2},
        max_prompt=24,
        max_new=24,
    ),
    "Brackets": _task("brackets:Brackets", "()[]45678=", max_prompt=8, max_new=16),
    "IncreasingNumbers": _task("increasing_numbers:IncreasingNumbers", "0123456789 =", max_prompt=9, max_new=15),
    "Countdown": _task("countdown:Countdown", "0123456789+-*(),:=", max_prompt=11, max_new=12),
    "Corpus": _task(
        "corpus:CorpusTask",
        _CORPUS_ALPHABET,
        {"prompt_chars": 32, "answer_chars": 8, "alphabet": _CORPUS_ALPHABET},
        max_prompt=32,
        max_new=9,
    ),
    # These two are nothing without task_kwargs; pass budgets to fit.
    "Data": _task("data:DataTask", None, max_prompt=256, max_new=64),
    "RewardModel": _task("reward_model:RewardModelTask", None, max_prompt=256, max_new=64),
    **EXACT_WORLDS,
    **WORLD_TASKS,
}
"""Name to (factory, environment kwargs)."""

REASONING_GYM_ENV = {"task": "chain_sum", "tokenizer": "char", "max_prompt": 128, "max_new": 64}
"""Kwargs of worldmtp/ReasoningGym-v0: pass ``task`` and ``task_kwargs``, and budgets to fit."""


TURN_ENV_ID = "worldmtp_turns/World-v0"
"""``TextTurnEnv``; its namespace sets it apart from ``worldmtp/``, whose ids take tokens."""
TURN_ENV = {"world": "GuessNumber"}
"""Its kwargs: pass ``world`` and ``world_kwargs``."""


def register_catalogue() -> None:
    """Register the ids of all of them."""
    for name, (factory, env_kwargs) in BUILTIN_TASKS.items():
        register_builtin(name, factory, env_kwargs)
    register_env("ReasoningGym", REASONING_GYM_ENV)
    register_turn_env(TURN_ENV_ID, TURN_ENV)
