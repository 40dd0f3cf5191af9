"""Gymnasium's toy-text environments as worlds: the dynamics are gymnasium's own, only the text is ours.

============  ===========  =======================  =============================================================
game          actions      opening                  reply
============  ===========  =======================  =============================================================
FrozenLake    l d r u      map, ``SFFF/FHFH/...``,  row and column, ``12``; in a hole ``12H``, at the goal ``33G``
                           or the place, ``00``
Taxi          s n e w p d  ``23YR``                 the same: row, column, passenger (T: in the taxi), goal
Blackjack     s h          ``14:6``, ``18a6``       the same: sum, a for a usable ace, dealer; ``24:6-`` is lost
CliffWalking  u r d l      ``30``                   the same: row and column
============  ===========  =======================  =============================================================

A hand of Blackjack ends with + won, - lost or = drawn. Rows and columns beyond 9 are letters: ``3b`` is row 3, column
11. What is no action is answered with "?", takes a turn, and leaves the game as it is. gymnasium's environments:
https://gymnasium.farama.org/environments/toy_text/

``reset(seed)`` is gymnasium's own with that seed. On random maps the map decides the slips: gymnasium's environment is
reset to a hash of it, from which nothing about them can be learnt. ``throw_dice`` decides them anew, in all games. So
one map is one question, whichever seeds draw it, and none is in two splits. A game that opens in one way only, as on a
given map, has nothing to hold out: its episodes are told apart by their seeds, and those of one split are as good as
those of the other.
"""

import hashlib
import itertools
import json
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from gymnasium.envs.toy_text import BlackjackEnv, CliffWalkingEnv, FrozenLakeEnv, TaxiEnv
from gymnasium.envs.toy_text.blackjack import draw_card
from gymnasium.envs.toy_text.frozen_lake import generate_random_map

from worldmtp.choices import check_choice
from worldmtp.envs.worlds.adapters import Returns, RewardScaling
from worldmtp.envs.worlds.players import Player
from worldmtp.envs.worlds.toy_players import BestHand, best_play, read_hand

_MAP_STREAM = 1  # of the seeds of random maps
MALFORMED = "?"
_DIGITS = string.digits + string.ascii_lowercase
_IN_TAXI = 4  # gymnasium's place of a passenger who rides


@dataclass(frozen=True)
class ToyGame:
    """How a game is made, told and read. ``low`` None is the return of ``max_turns`` turns at -1 each.

    ``state`` is gymnasium's, from the environment and a reply; a hand of Blackjack is none.
    """

    make: Callable[..., Any]
    actions: str
    low: float | None
    high: float
    success: float
    opening: Callable[[Any], str]
    reply: Callable[[Any, float, bool], str]
    state: Callable[[Any, str], int] | None = None

    @property
    def usual_reward(self) -> float:
        """Of a step after which the game goes on, unless it is punished."""
        return -1.0 if self.low is None else 0.0


def is_deterministic(env: Any) -> bool:
    """Whether the opening decides all that follows: no transition is left to chance."""
    if isinstance(env, BlackjackEnv) or getattr(env, "fickle_passenger", False):
        return False
    return all(len(transitions) == 1 for by_action in env.P.values() for transitions in by_action.values())


def _throw(env: Any, seed: int, mind_is_made_up: bool = False) -> None:
    """Decide by this seed what gymnasium's environment leaves to chance from here on."""
    env.np_random = np.random.default_rng(seed)
    if isinstance(env, BlackjackEnv):
        env.dealer[1] = draw_card(env.np_random)
    if getattr(env, "fickle_passenger", False):
        env.fickle_step = env.np_random.random() < env.fickle_probability and not mind_is_made_up


def _place(row: int, column: int) -> str:
    return _DIGITS[row] + _DIGITS[column]


def _lake_opening(env: Any) -> str:
    return "/".join("".join(row) for row in env.desc.astype(str).tolist())


def _lake_reply(env: Any, reward: float = 0.0, terminated: bool = False) -> str:
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


def _lake_state(env: Any, text: str) -> int:
    if "S" in text:  # the map
        return int(np.flatnonzero(env.desc.astype(str).ravel() == "S")[0])
    return int(_DIGITS.index(text[0]) * env.ncol + _DIGITS.index(text[1]))


def _taxi_state(env: Any, text: str) -> int:
    return int(env.encode(int(text[0]), int(text[1]), "RGYBT".index(text[2]), "RGYB".index(text[3])))


def _cliff_state(env: Any, text: str) -> int:
    return int(_DIGITS.index(text[0]) * env.shape[1] + _DIGITS.index(text[1]))


TOY_GAMES: dict[str, ToyGame] = {
    "FrozenLake": ToyGame(FrozenLakeEnv, "ldru", 0.0, 1.0, 1.0, _lake_opening, _lake_reply, _lake_state),
    "Taxi": ToyGame(TaxiEnv, "snewpd", None, 20.0, 20.0, _taxi_text, _taxi_text, _taxi_state),
    "Blackjack": ToyGame(BlackjackEnv, "sh", -1.0, 1.0, 1.0, _cards_opening, _cards_reply),
    "CliffWalking": ToyGame(CliffWalkingEnv, "urdl", None, -13.0, -1.0, _cliff_text, _cliff_text, _cliff_state),
}
"""By the name of gymnasium's id, without its version."""


class ToyText:
    """One of gymnasium's toy-text environments.

    The return is gymnasium's, scaled: r -> (r - low) / (high - low) with ``returns`` = (low, high), paid when the game
    is over. A game that is cut short by ``max_turns`` is truncated and pays nothing.

    Args:
        game: "FrozenLake", "Taxi", "Blackjack" or "CliffWalking".
        env_kwargs: of gymnasium's environment, such as ``is_slippery``.
        actions: words for gymnasium's actions 0, 1, ..., instead of the usual ones.
        max_turns: turns after which an episode is truncated.
        returns: gymnasium's returns that are worth 0 and 1; those between are in proportion, those beyond are clipped.
            By default (0, 1) for FrozenLake, (-1, 1) for Blackjack, (-max_turns, 20) for Taxi and (-max_turns, -13) for
            CliffWalking, whose shortest way has 13 steps.
        random_map: of FrozenLake, a new map for each seed, by gymnasium's generator: {"size": 4, "p": 0.8}.
        tells_map: of FrozenLake, whether it opens with the map; else with the place, like every reply, since of a map
            that never changes there is nothing to read.

    Raises:
        ValueError: if the game is unknown, or an argument does not fit it.
    """

    def __init__(
        self,
        game: str,
        env_kwargs: Mapping[str, Any] | None = None,
        *,
        actions: Sequence[str] | None = None,
        max_turns: int = 30,
        returns: Returns | None = None,
        random_map: Mapping[str, Any] | None = None,
        tells_map: bool = True,
    ) -> None:
        check_choice("game", game, TOY_GAMES)
        if max_turns < 1:
            raise ValueError(f"max_turns={max_turns} must be at least 1.")
        if random_map is not None and (game != "FrozenLake" or {"desc", "map_name"} & set(env_kwargs or {})):
            raise ValueError(f"random_map={dict(random_map)} is for FrozenLake without desc or map_name.")
        if not tells_map and (game != "FrozenLake" or random_map is not None):
            raise ValueError("tells_map=False is for FrozenLake on a map that is always the same.")
        self._name, self._game = game, TOY_GAMES[game]
        words = tuple(self._game.actions if actions is None else actions)
        if len(words) != len(self._game.actions) or len({word.strip() for word in words} - {""}) != len(words):
            raise ValueError(f"actions={words} must be {len(self._game.actions)} different words for {game}.")
        low = -max_turns if self._game.low is None else self._game.low
        self._scaling = RewardScaling((low, self._game.high) if returns is None else returns)
        self._words = words
        self._action_of = {word.strip(): action for action, word in enumerate(words)}
        self._kwargs = dict(env_kwargs or {})
        self._random_map = None if random_map is None else dict(random_map)
        self.max_turns = max_turns
        self.turn = 0
        self._desc: list[str] = []
        self._dice: int | None = None
        self._mind_is_made_up = False
        self._env: Any = self._game.make(**self._kwargs)
        self._opening = self._game.opening if tells_map else _lake_reply
        self._has_dice = not is_deterministic(self._env)
        opens_in_one_way = game == "FrozenLake" and tells_map
        self._is_told = self._random_map is not None or (
            not self._has_dice and not opens_in_one_way and np.count_nonzero(self._env.initial_state_distrib) > 1
        )

    @property
    def env(self) -> Any:
        """Gymnasium's environment; on a random map made with the first turn, since the prompt needs only the map."""
        if self._env is None:
            self._env = self._game.make(desc=self._desc, **self._kwargs)
            self._env.reset(seed=_seed_of_map(self._desc))
            if self._dice is not None:
                _throw(self._env, self._dice)
        return self._env

    @property
    def has_dice(self) -> bool:
        """Whether slips, cards or a passenger's whims are left to chance."""
        return self._has_dice

    def throw_dice(self, seed: int) -> None:
        """Let this seed decide all that has not been shown, the dealer's hidden card included."""
        self._dice = seed
        if self._env is not None:
            _throw(self._env, seed, self._mind_is_made_up)

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        """The opening of the environment that is reset to this seed.

        Nothing is hidden where the opening decides the episode, as random maps do; elsewhere the seed is, and where the
        game opens in one way only.
        """
        self.turn, self._dice, self._mind_is_made_up = 0, None, False
        self._scaling.begin()
        if self._random_map is not None:
            map_seed = int(np.random.default_rng([seed, _MAP_STREAM]).integers(2**31))
            self._desc, self._env = generate_random_map(**self._random_map, seed=map_seed), None
            return "/".join(self._desc), {"hidden": ""}
        self.env.reset(seed=seed)
        opening = self._opening(self.env)
        hidden = {"hidden": ""} if self._is_told else {}
        return opening, {**hidden, **self._optimal_value(opening)}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Where gymnasium's step has led."""
        self.turn += 1
        is_last = self.turn >= self.max_turns
        action = self._action_of.get(text.strip())
        if action is None:
            return MALFORMED, 0.0, False, is_last, {"is_success": False, "reason": "malformed"}
        ridden_from = self._rides_at()
        _, reward, terminated, _, _ = self.env.step(action)
        # A fickle passenger thinks again when he is first moved, and never after.
        self._mind_is_made_up |= ridden_from is not None and self._rides_at() not in (None, ridden_from)
        paid = self._scaling.pay(float(reward), bool(terminated))
        reply = self._game.reply(self.env, float(reward), bool(terminated))
        is_success = bool(terminated) and float(reward) >= self._game.success
        return reply, paid, bool(terminated), is_last and not terminated, {"is_success": is_success}

    def _rides_at(self) -> tuple[int, int] | None:
        """Return where a fickle passenger rides, or None."""
        if not getattr(self.env, "fickle_passenger", False):
            return None
        row, column, place, _ = map(int, self.env.decode(self.env.s))
        return (row, column) if place == _IN_TAXI else None

    def moves(self) -> Sequence[str]:
        """The words for gymnasium's actions."""
        return self._words

    def player(self) -> Player:
        """The best player of ``max_turns`` turns; of a map that is told it reads the map."""
        turns = itertools.count()
        if self._game.state is None:
            best = self._best_hand()

            def call(reply: str) -> str:
                hand, dealer = read_hand(reply)
                return self._words[0 if best.sticks(hand, dealer, self.max_turns - next(turns)) else 1]

            return call
        env: Any = None

        def move(reply: str) -> str:
            nonlocal env
            if env is None:
                env = self.env if self._random_map is None else self._game.make(desc=reply.split("/"), **self._kwargs)
            _, actions = self._plan(env)
            assert self._game.state is not None
            return self._words[actions[next(turns), self._game.state(env, reply)]]

        return move

    def _optimal_value(self, opening: str) -> dict[str, float]:
        """Return what the best player earns on average, where the program that says so has the game's own chances."""
        if {"fickle_passenger", "natural", "sab"} & set(self._kwargs):
            return {}
        if self._game.state is None:
            return {"optimal_value": self._best_hand().value(*read_hand(opening), self.max_turns)}
        values, _ = self._plan(self.env)
        return {"optimal_value": float(values[0, self._game.state(self.env, opening)])}

    def _plan(self, env: Any) -> tuple[np.ndarray, np.ndarray]:
        desc = _lake_opening(env) if hasattr(env, "ncol") else ""
        made_with = json.dumps({name: value for name, value in self._kwargs.items() if name != "desc"}, sort_keys=True)
        return _plan_of(self._name, made_with, desc, self.max_turns, (self._scaling.low, self._scaling.high))

    def _best_hand(self) -> BestHand:
        return _best_hand_of((self._scaling.low, self._scaling.high))


@lru_cache(maxsize=64)
def _plan_of(
    name: str, made_with: str, desc: str, max_turns: int, returns: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return values and actions by turn and state; the worlds of all rows share them."""
    game, scaling = TOY_GAMES[name], RewardScaling(returns)
    env = game.make(**json.loads(made_with), **({"desc": desc.split("/")} if desc else {}))
    usual = game.usual_reward
    return best_play(env.P, max_turns, usual, lambda turn, reward: scaling.worth(usual * turn + reward))


@lru_cache(maxsize=8)
def _best_hand_of(returns: tuple[float, float]) -> BestHand:
    return BestHand(RewardScaling(returns).worth)


def _seed_of_map(desc: Sequence[str]) -> int:
    """Return the seed of a map's slips, below 2**31."""
    return int.from_bytes(hashlib.blake2b("/".join(desc).encode(), digest_size=8).digest(), "big") >> 33
