"""How gymnasium's toy-text environments are made and told.

============  ===========  =======================  =============================================================
game          actions      opening                  reply
============  ===========  =======================  =============================================================
FrozenLake    l d r u      map, ``SFFF/FHFH/...``   row and column, ``12``; in a hole ``12H``, at the goal ``33G``
Taxi          s n e w p d  ``23YR``                 the same: row, column, passenger (T: in the taxi), goal
Blackjack     s h          ``14:6``, ``18a6``       the same: sum, a for a usable ace, dealer; ``24:6-`` is lost
CliffWalking  u r d l      ``30``                   the same: row and column
============  ===========  =======================  =============================================================

A hand of Blackjack ends with + won, - lost or = drawn. Rows and columns beyond 9 are letters: ``3b`` is row 3, column
11. What is no action is answered with "?", takes a turn, and leaves the game as it is. gymnasium's environments:
https://gymnasium.farama.org/environments/toy_text/
"""

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gymnasium.envs.toy_text import BlackjackEnv, CliffWalkingEnv, FrozenLakeEnv, TaxiEnv

MALFORMED = "?"
_DIGITS = string.digits + string.ascii_lowercase


@dataclass(frozen=True)
class ToyGame:
    """How a game is made and told. ``low`` None is the return of ``max_turns`` turns at -1 each."""

    make: Callable[..., Any]
    actions: str
    low: float | None
    high: float
    success: float
    opening: Callable[[Any], str]
    reply: Callable[[Any, float, bool], str]


def is_deterministic(env: Any) -> bool:
    """Whether the opening decides all that follows: no transition is left to chance."""
    if isinstance(env, BlackjackEnv) or getattr(env, "fickle_passenger", False):
        return False
    return all(len(transitions) == 1 for by_action in env.P.values() for transitions in by_action.values())


def _place(row: int, column: int) -> str:
    return _DIGITS[row] + _DIGITS[column]


def _lake_opening(env: Any) -> str:
    return "/".join("".join(row) for row in env.desc.astype(str).tolist())


def _lake_reply(env: Any, reward: float, terminated: bool) -> str:
    row, column = divmod(int(env.s), env.ncol)
    return _place(row, column) + (str(env.desc[row, column].decode()) if terminated else "")


def _taxi_text(env: Any, *_: Any) -> str:
    row, column, passenger, goal = (int(part) for part in env.decode(env.s))
    return _place(row, column) + "RGYBT"[passenger] + "RGYB"[goal]


def _cards_opening(env: Any) -> str:
    total, dealer, has_usable_ace = env._get_obs()
    return f"{total}{'a' if has_usable_ace else ':'}{dealer}"


def _cards_reply(env: Any, reward: float, terminated: bool) -> str:
    outcome = "=" if reward == 0.0 else "+" if reward > 0.0 else "-"
    return _cards_opening(env) + (outcome if terminated else "")


def _cliff_text(env: Any, *_: Any) -> str:
    return _place(*divmod(int(env.s), env.shape[1]))


TOY_GAMES: dict[str, ToyGame] = {
    "FrozenLake": ToyGame(FrozenLakeEnv, "ldru", 0.0, 1.0, 1.0, _lake_opening, _lake_reply),
    "Taxi": ToyGame(TaxiEnv, "snewpd", None, 20.0, 20.0, _taxi_text, _taxi_text),
    "Blackjack": ToyGame(BlackjackEnv, "sh", -1.0, 1.0, 1.0, _cards_opening, _cards_reply),
    "CliffWalking": ToyGame(CliffWalkingEnv, "urdl", None, -13.0, -1.0, _cliff_text, _cliff_text),
}
"""By the name of gymnasium's id, without its version."""
