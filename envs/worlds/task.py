"""A task from a world: the opening text is the prompt, the world's seed is what decides the episode."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64

from worldmtp.choices import check_choice
from worldmtp.envs.scoring import checked_reply
from worldmtp.envs.task import Example, Score, TextWorld, WorldOfChance, opening_of
from worldmtp.lazy import import_name

_SEED_RANGE = 2**31
_MAX_CONSTANT_TURNS = 1000


class WorldTask:
    """Conversations with worlds of one kind.

    Args:
        world: "<module>:<class>", or what makes a ``TextWorld`` when called with ``world_kwargs``.
        world_kwargs: what each world is made with.
        probe_bound: the largest mean return that saying the same thing in every turn may earn.
        num_seeds: worlds are seeded below this.
        universe_size: the number of different episodes where that is small; by default ``num_seeds`` if it was given.
        dice: "episode" throws new dice in every episode, so that a pool of starts is no set of fates; "start" lets the
            world's seed decide them. By default "episode" where the world has dice.

    Raises:
        ValueError: if the world cannot be imported, there are no seeds, or no dice that could be thrown.
    """

    def __init__(
        self,
        world: str | Callable[..., TextWorld],
        world_kwargs: Mapping[str, Any] | None = None,
        *,
        probe_bound: float = 0.0,
        num_seeds: int = _SEED_RANGE,
        universe_size: int | None = None,
        dice: str | None = None,
    ) -> None:
        if dice is not None:
            check_choice("dice", dice, ("episode", "start"))
        if num_seeds < 1:
            raise ValueError(f"num_seeds={num_seeds} must be positive.")
        self.factory = import_name(world, f"world {world!r}") if isinstance(world, str) else world
        self.world_kwargs = dict(world_kwargs or {})
        self.probe_bound = probe_bound
        self.universe_size = universe_size or (num_seeds if num_seeds < _SEED_RANGE else None)
        self._num_seeds = num_seeds
        self._dice = dice
        self._asked: TextWorld | None = None

    @property
    def has_dice(self) -> bool:
        """Whether new dice are thrown in every episode.

        Raises:
            ValueError: they were asked for, and the world has none.
        """
        if self._dice == "start":
            return False
        world = self._world()
        found = isinstance(world, WorldOfChance) and world.has_dice
        if self._dice == "episode" and not found:
            raise ValueError(
                f"dice='episode': {type(world).__name__} leaves nothing to chance, or has no throw_dice(seed); leave "
                "dice out, or give the world the methods of worldmtp.envs.task.WorldOfChance."
            )
        return found

    def make_world(self) -> TextWorld:
        """A world.

        Raises:
            TypeError: if what was made is none.
        """
        made = self.factory(**self.world_kwargs)
        if not isinstance(made, TextWorld):
            raise TypeError(f"{self.factory!r} made a {type(made).__name__} without reset(seed) and step(text).")
        return made

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        """The opening of a world with a random seed.

        What is hidden is ``info["hidden"]`` of the reset where the world says it, such as the number to be guessed, so
        that two seeds of one episode are one example; else it is the seed.
        """
        seed = int(rng.integers(self._num_seeds))
        prompt, info = opening_of(self._world(), seed)
        hidden = str(info.pop("hidden", seed))
        return Example(prompt=prompt, meta={"seed": seed}, hidden=hidden, info=info)

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """The return of a player who says ``text`` in every turn."""
        world = self._world()
        world.reset(example.meta["seed"])
        total = 0.0
        for _ in range(_MAX_CONSTANT_TURNS):
            reply = checked_reply(world.step(text), world)
            total += reply.reward
            if reply.terminated or reply.truncated:
                break
        return Score(value=total)

    def _world(self) -> TextWorld:
        if self._asked is None:
            self._asked = self.make_world()
        return self._asked
