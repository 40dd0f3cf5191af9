"""The worlds that come with the package, as kwargs of their token environments.

``max_new`` is the exact room for ``max_turns`` turns of ``max_turn`` tokens each, with their longest replies, so a row
is never full before the world is done. A turn may be one token longer than it need be, EOS included.
``probe_bound`` is a bound of the mean return of the best constant turn, where one earns anything.
"""

from typing import Any

_TASK = "worldmtp.envs.worlds.task:WorldTask"
_WORLDS = "worldmtp.envs.worlds"


def _entry(
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
    return _TASK, {
        "task_kwargs": {"world": f"{_WORLDS}.{world}", "world_kwargs": world_kwargs, **task_kwargs},
        "tokenizer": {"kind": "char", "alphabet": alphabet},
        "max_prompt": max_prompt,
        "max_turn": max_turn,
        "max_new": max_turns * (max_turn + max_reply),
    }


WORLD_TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    # 4 guesses at worst among 15 numbers, and twice that in all. The number of (range, number) pairs is the sum of
    # size (101 - size) over sizes 4..15.
    "GuessNumber": _entry(
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
    "GridWorld": _entry(
        "grid_world:GridWorld",
        {"size": 4, "wall_probability": 0.25, "max_turns": 16},
        "nesw#.G?",
        max_prompt=4,
        max_turns=16,
        max_turn=3,
        max_reply=4,
        probe_bound=0.15,
    ),
    "Pig": _entry(
        "dice:Pig",
        {"min_target": 8, "max_target": 20, "min_decisions": 4, "max_decisions": 10},
        "0123456789/:rh?",
        max_prompt=6,
        max_turns=10,
        max_turn=3,
        max_reply=2,
    ),
    "FrozenLake": _entry(
        "toy_text:ToyText",
        {"game": "FrozenLake", "random_map": {"size": 4, "p": 0.7}, "max_turns": 24},
        "SFHG/0123ldru?",
        max_prompt=19,
        max_turns=24,
        max_turn=3,
        max_reply=3,
        probe_bound=0.25,
    ),
    # In the rain, since without it 300 openings are all there is, too few to hold 512 out.
    "Taxi": _entry(
        "toy_text:ToyText",
        {"game": "Taxi", "env_kwargs": {"is_rainy": True}, "max_turns": 30},
        "01234RGYBTsnewpd?",
        max_prompt=4,
        max_turns=30,
        max_turn=3,
        max_reply=4,
    ),
    "Blackjack": _entry(
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

TURN_ENV_ID = "worldmtp_turns/World-v0"
"""``TextTurnEnv``; its namespace sets it apart from ``worldmtp/``, whose ids take tokens."""
TURN_ENV = {"world": "GuessNumber"}
"""Its kwargs: pass ``world`` and ``world_kwargs``."""
