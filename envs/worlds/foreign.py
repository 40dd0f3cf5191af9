"""What others have written with ``reset(seed)`` and ``step(text)``, held to the signatures of a ``TextWorld``.

Libraries of text games seed and draw from Python's and numpy's global generators. Here each world has a state of these
to itself, seeded at reset and in place only while the game runs, so worlds disturb neither each other nor the caller.
"""

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from worldmtp.envs.global_rng import GlobalStream
from worldmtp.envs.worlds.settlement import Returns, Settlement


class ForeignWorld:
    """A game of others as a world.

    ``reset`` may return a text or (text, info); ``step`` gymnasium's five values or gym's four, (text, reward, done,
    info) with ``info["TimeLimit.truncated"]``. Where a game says terminated and truncated at once, it is terminated.

    Args:
        make: makes the game; called once, with the world's own global generators.
        returns: the game's returns that are worth 0 and 1, see ``Settlement``; None passes its rewards on as they are,
            which is right where they add up to numbers in [0, 1].

    Raises:
        TypeError: if the game has not these methods, or ``reset`` takes no seed.
    """

    def __init__(self, make: Callable[[], Any], returns: Returns | None = None) -> None:
        self._settlement = None if returns is None else Settlement(returns)
        self._stream = GlobalStream()
        with self._stream.lent():
            self.game = make()
        self._name = type(self.game).__name__
        for method in ("reset", "step"):
            if not callable(getattr(self.game, method, None)):
                raise TypeError(f"{self._name} has no method {method}; expected reset(seed) and step(text).")
        self._takes_keyword = _takes_seed_by_name(self.game.reset, self._name)

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        """The opening text and info.

        Raises:
            TypeError: if it is no text.
        """
        self._stream.seed(seed)
        with self._stream.lent():
            returned = self.game.reset(seed=seed) if self._takes_keyword else self.game.reset(seed)
        if self._settlement is not None:
            self._settlement.begin()
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
        if self._settlement is not None:
            reward = self._settlement.pay(reward, terminated)
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
