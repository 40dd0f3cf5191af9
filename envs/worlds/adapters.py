"""Environments of other libraries as worlds: gymnasium's, GEM's, TextArena's, and any object that speaks text.

GEM and TextArena are no dependencies. Each function takes an id, by which every call makes a game of its own, as the
rows of a vector environment need, or a game already made. As JSON, for an EnvSpec or the command line::

    {"world": "worldmtp.envs.worlds.adapters:from_gem", "world_kwargs": {"env": "game:GuessTheNumber-v0-easy"}}

Libraries of text games seed and draw from Python's and numpy's global generators. Here each world has a state of these
to itself, seeded at reset and in place only while the game runs, so worlds disturb neither each other nor the caller.
"""

import importlib
import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
from gymnasium import spaces

from worldmtp.choices import did_you_mean
from worldmtp.envs.global_rng import GlobalStream
from worldmtp.lazy import import_name

PLAYER = 0
Returns = Sequence[int | float]
"""The return that is worth 0 and the one that is worth 1."""


def from_gymnasium(env: str | type | Any, returns: Returns | None = None, **kwargs: Any) -> "ForeignWorld":
    """Return a world of a gymnasium environment whose observations and actions are texts.

    Its spaces are ``gymnasium.spaces.Text``, or not declared; what it returns may be longer than they say. The seed of
    ``reset`` decides an episode with what is said, as gymnasium asks.

    Args:
        env: a gymnasium id (or ``<module>:<id>``), a class of environments, ``"<module>:<class>"``, or an environment.
        returns: the returns that are worth 0 and 1; None passes rewards on as they are, which add up to [0, 1].
        **kwargs: what the environment is made with.

    Raises:
        ValueError: if there is no such id or class, or kwargs are given with an environment.
        TypeError: if its observations or actions are no texts.
    """
    if isinstance(env, type):
        return ForeignWorld(lambda: _speaking(env(**kwargs)), returns)
    if not isinstance(env, str):
        return _made(_speaking(env), kwargs, returns)

    def make() -> Any:
        module, _, name = env.rpartition(":")
        if module and name not in gymnasium.registry:
            importlib.import_module(module)
        if module and name not in gymnasium.registry:
            return _speaking(import_name(env, f"environment {env!r}")(**kwargs))
        try:
            return _speaking(gymnasium.make(name, disable_env_checker=True, **kwargs))
        except gymnasium.error.Error as error:
            raise ValueError(f"gymnasium environment {env!r} cannot be made: {error}") from error

    return ForeignWorld(make, returns)


def _speaking(env: Any) -> Any:
    """Return the environment.

    Raises:
        TypeError: if its spaces are of something else than texts.
    """
    for name in ("observation_space", "action_space"):
        space = getattr(env, name, None)
        if space is not None and not isinstance(space, spaces.Text):
            raise TypeError(
                f"{type(getattr(env, 'unwrapped', env)).__name__}.{name} is {space}; expected gymnasium.spaces.Text, "
                "or none: a world hears and says texts."
            )
    return env


def from_gem(env: str | Any, returns: Returns | None = None, **kwargs: Any) -> "ForeignWorld":
    """Return a world of GEM (https://github.com/axon-rl/gem), read in gem-llm 0.1.0.

    Args:
        env: an id of ``gem.make``, or an environment.
        returns: the returns that are worth 0 and 1; GEM pays -0.1 for a malformed answer in many games.
        **kwargs: of ``gem.make``.

    Raises:
        ImportError: if an id is given and GEM is not installed.
        ValueError: if there is no such id, or kwargs are given with an environment.
    """
    if not isinstance(env, str):
        return _made(env, kwargs, returns)

    def make() -> Any:
        _import("gem.envs", "gem-llm")  # registers its ids
        library = _import("gem", "gem-llm")
        _check_id(env, _import("gem.envs.registration", "gem-llm").ENV_REGISTRY, "GEM")
        return library.make(env, **kwargs)

    return ForeignWorld(make, returns)


def from_textarena(env: str | Any, returns: Returns | None = None, **kwargs: Any) -> "ForeignWorld":
    """Return a world of TextArena, see ``TextArenaGame``.

    Args:
        env: an id of ``textarena.make`` whose game one player plays, or an environment.
        returns: the returns that are worth 0 and 1.
        **kwargs: of ``textarena.make``.

    Raises:
        ImportError: if an id is given and TextArena is not installed.
        ValueError: if there is no such id, or kwargs are given with an environment. A game for more than one player is
            refused when it is reset.
    """
    if not isinstance(env, str):
        return _made(TextArenaGame(env), kwargs, returns)

    def make() -> Any:
        library = _import("textarena", "textarena")
        _check_id(env, _import("textarena.envs.registration", "textarena").ENV_REGISTRY, "TextArena")
        return TextArenaGame(library.make(env, **kwargs))

    return ForeignWorld(make, returns)


def from_text_object(game: str | Any, returns: Returns | None = None, **kwargs: Any) -> "ForeignWorld":
    """Return a world of any object with ``reset(seed)`` and ``step(text)``; ``ForeignWorld`` says what they may return.

    Args:
        game: the object, or "<module>:<class>" of one.
        returns: the returns that are worth 0 and 1.
        **kwargs: what the class is constructed with.

    Raises:
        ValueError: if the class cannot be imported, or kwargs are given with an object.
        TypeError: if the object has not these methods.
    """
    if not isinstance(game, str):
        return _made(game, kwargs, returns)
    made = import_name(game, f"game {game!r}")
    return ForeignWorld(lambda: made(**kwargs), returns)


def _made(game: Any, kwargs: Mapping[str, Any], returns: Returns | None) -> "ForeignWorld":
    if kwargs:
        raise ValueError(f"{dict(kwargs)} have no effect on {type(game).__name__}, which is already made.")
    if isinstance(game, type):
        raise TypeError(f"{game.__name__} is a class; give an object of it, or its name as '<module>:<class>'.")
    return ForeignWorld(lambda: game, returns)


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} cannot be imported: {error}. Install it with: pip install {package}") from error


def _check_id(name: str, registry: Mapping[str, Any], library: str) -> None:
    if name not in registry:
        raise ValueError(f"{library} has no id {name!r}{did_you_mean(name, registry)}")


class ForeignWorld:
    """A game of others as a world.

    ``reset`` may return a text or (text, info); ``step`` gymnasium's five values or gym's four, (text, reward, done,
    info) with ``info["TimeLimit.truncated"]``. Where a game says terminated and truncated at once, it is terminated.

    Args:
        make: makes the game; called once, with the world's own global generators.
        returns: the game's returns that are worth 0 and 1, see ``RewardScaling``; None passes its rewards on, which is
            right where they add up to numbers in [0, 1].

    Raises:
        TypeError: if the game has not these methods, or ``reset`` takes no seed.
    """

    def __init__(self, make: Callable[[], Any], returns: Returns | None = None) -> None:
        self._scaling = None if returns is None else RewardScaling(returns)
        self._stream = GlobalStream()
        with self._stream.lent():
            self.game = make()
        self._name = type(self.game).__name__
        for method in ("reset", "step"):
            if not callable(getattr(self.game, method, None)):
                raise TypeError(f"{self._name} has no method {method}; expected reset(seed) and step(text).")
        self._takes_keyword = _takes_seed_by_name(self.game.reset, self._name)
        for method in ("moves", "player"):  # a game may show how it is played, as any world may
            shown = getattr(getattr(self.game, "unwrapped", self.game), method, None)
            if callable(shown):
                setattr(self, method, shown)

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        """The opening text and info.

        Raises:
            TypeError: if it is no text.
        """
        self._stream.seed(seed)
        with self._stream.lent():
            returned = self.game.reset(seed=seed) if self._takes_keyword else self.game.reset(seed)
        if self._scaling is not None:
            self._scaling.begin()
        text, info = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, {})
        if not isinstance(text, str) or not isinstance(info, Mapping):
            raise TypeError(f"{self._name}.reset returned {returned!r}; expected a str, or (str, info).")
        return text, dict(info)

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """The reply.

        Raises:
            TypeError: if what the game returns is neither of the two forms.
        """
        with self._stream.lent():
            returned = self.game.step(text)
        reply, reward, terminated, truncated, info = _five_values(returned, self._name)
        if self._scaling is not None:
            reward = self._scaling.pay(reward, terminated)
        return reply, reward, terminated, truncated, info


def _takes_seed_by_name(reset: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(reset).parameters.values()
    if any(it.kind is it.VAR_KEYWORD or (it.name == "seed" and it.kind is not it.POSITIONAL_ONLY) for it in parameters):
        return True
    if any(it.kind in (it.POSITIONAL_ONLY, it.POSITIONAL_OR_KEYWORD, it.VAR_POSITIONAL) for it in parameters):
        return False
    raise TypeError(f"{name}.reset{inspect.signature(reset)} takes no seed; a world must be decided by one.")


def _five_values(returned: Any, name: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
    wanted = "expected (text, reward, terminated, truncated, info), or (text, reward, done, info)"
    if not isinstance(returned, tuple) or len(returned) not in (4, 5):
        raise TypeError(f"{name}.step returned {returned!r}; {wanted}.")
    text, reward, *flags, info = returned
    if not isinstance(info, Mapping):
        raise TypeError(f"{name}.step returned the info {info!r}, which is no mapping; {wanted}.")
    if not isinstance(text, str):
        raise TypeError(f"{name}.step said {text!r}, which is no str; {wanted}.")
    if not isinstance(reward, numbers.Real) or not math.isfinite(reward):
        raise TypeError(f"{name}.step paid {reward!r}, which is no finite number; {wanted}.")
    if len(flags) == 1:
        flags = [flags[0] and not info.get("TimeLimit.truncated", False), flags[0]]
    terminated, truncated = (bool(flag) for flag in flags)
    return text, float(reward), terminated, truncated and not terminated, dict(info)


class RewardScaling:
    """Collects the rewards of an episode and pays, with the last one, where their sum G lies between two bounds.

    The payment is (min(max(G, low), high) - low) / (high - low), and 0 before. A game that is cut short pays nothing,
    else it would pay to stall where all that can happen is to lose.

    Args:
        returns: (low, high); what lies beyond is clipped.

    Raises:
        ValueError: if the bounds are not two finite numbers in this order.
    """

    def __init__(self, returns: Returns) -> None:
        if len(returns) != 2 or not all(math.isfinite(bound) for bound in returns) or returns[0] >= returns[1]:
            raise ValueError(f"returns={returns} must be two finite numbers, the lower first.")
        self.low, self.high = float(returns[0]), float(returns[1])
        self._collected = 0.0

    def begin(self) -> None:
        """A new episode."""
        self._collected = 0.0

    def pay(self, reward: float, terminated: bool) -> float:
        """What this turn pays."""
        self._collected += reward
        return self.worth(self._collected) if terminated else 0.0

    def worth(self, collected: float) -> float:
        """What a game is worth that ends with this return."""
        return (min(max(collected, self.low), self.high) - self.low) / (self.high - self.low)


class TextArenaGame:
    """A single-player game of TextArena as an object with ``reset(seed)`` and ``step(text)``.

    Read in TextArena 0.7.4 (https://github.com/LeonGuertler/TextArena): observations are fetched apart from steps,
    rewards come from ``close()`` when the game is over, and observation wrappers keep all they have seen in
    ``full_observations``, which no reset clears, so that the second episode opens with the first one's text.

    What is said is only what is new. Wrappers that show the whole history are cut to what it has gained.

    A history gains whole lines. An observation that repeats the last one, or goes on within its last line ("Score: 1",
    "Score: 10"), shows what is now and is said as it is.

    A wrapper's text repeats the player's own move ("[Player] [5]"); the "-raw" variants of games do not, as their
    messages are taken without the player's own. The last reply is the game's stated reason for its outcome. TextArena
    knows one ``done``, so a game is always terminated.

    Args:
        env: what ``textarena.make`` makes.

    Raises:
        TypeError: if it has not the methods of a TextArena environment.
    """

    def __init__(self, env: Any) -> None:
        missing = [name for name in ("reset", "step", "get_observation", "close") if not hasattr(env, name)]
        if missing:
            raise TypeError(f"{type(env).__name__} is no TextArena environment: it has no {missing}.")
        self.env = env
        self._seen = ""

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        """The game's prompt.

        Raises:
            ValueError: if the game cannot be played by one.
        """
        layer: Any = self.env
        while layer is not None:  # __dict__, since wrappers pass on what they have not
            if "full_observations" in vars(layer):
                layer.full_observations = {}
            layer = vars(layer).get("env")
        self._seen = ""
        try:
            self.env.reset(num_players=1, seed=seed)
        except AssertionError as error:
            raise ValueError(
                f"{type(self.env).__name__} cannot be reset with num_players=1: {error}. Only single-player games are "
                "worlds; a game against others, or against oneself, is not decided by its seed."
            ) from error
        return self._observe(), {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """What is new, or, when the game is over, why.

        Raises:
            ValueError: if a game that is over has no reward.
        """
        done, info = self.env.step(text)
        if not done:
            return self._observe(), 0.0, False, False, dict(info)
        rewards, game_info = self.env.close()
        if not rewards or PLAYER not in rewards:
            raise ValueError(f"{type(self.env).__name__} is over and close() paid {rewards!r}; expected {{0: reward}}.")
        of_player = dict((game_info or {}).get(PLAYER, {}))
        reply = str(of_player.get("reason") or "")
        return reply, float(rewards[PLAYER]), True, False, {**info, "game_info": of_player}

    def _observe(self) -> str:
        player, observation = self.env.get_observation()
        if player != PLAYER:
            raise ValueError(f"player {player} of {type(self.env).__name__} is to move; expected player 0 alone.")
        if not isinstance(observation, str):
            return "\n".join(message for sender, message, *_ in observation if sender != PLAYER)
        new, self._seen = _gained(self._seen, observation), observation
        return new


def _gained(seen: str, observation: str) -> str:
    """Return the lines that a history has gained, or the whole of what is no history of more lines."""
    new = observation.removeprefix(seen)
    begins_a_line = new != observation and (seen.endswith("\n") or new.startswith("\n"))
    return new if new and begins_a_line else observation
