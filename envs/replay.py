"""Worlds that can be lost and found again: since replies are decided by seed and texts, a world is its history.

Worlds live where they are asked, in this process or in one that may be killed. Who asks says all that was said in the
episode; a world that has heard all but the last text goes on, any other is reset and told it again.
"""

import math
from collections.abc import Sequence
from typing import Any

from worldmtp.envs.task import Example, Reply, Score, TextWorld, TurnTask, opening_of


class WorldReplay:
    """The worlds of all rows of a turn task."""

    def __init__(self, task: TurnTask) -> None:
        self._task = task
        self._worlds: dict[int, TextWorld] = {}
        self._heard: dict[int, tuple[Any, tuple[str, ...]]] = {}

    def score(self, *arguments: Any) -> Score:
        """The task's own."""
        return self._task.score(*arguments)

    def tell(self, row: int, example: Example, said: Sequence[str]) -> bool:
        """Bring the row's world to where all of this has been said; at once if it is there already.

        Raises:
            ValueError: if the world opens otherwise than the example says.
        """
        seed = example.meta["seed"]
        state = seed, tuple(said)
        if said and self._heard.get(row) == state:
            return True
        if row not in self._worlds:
            self._worlds[row] = self._task.make_world()
        world = self._worlds[row]
        self._heard.pop(row, None)
        opening, _ = opening_of(world, seed)
        if opening != example.prompt:
            raise ValueError(
                f"{type(world).__name__}.reset({seed}) said {opening!r} and, when the prompt was drawn, "
                f"{example.prompt!r}; a world must be decided by its seed."
            )
        for text in said:
            world.step(text)
        self._heard[row] = state
        return True

    def turn(self, row: int, example: Example, said: Sequence[str]) -> Reply:
        """The reply of the row's world to the last of the texts.

        Raises:
            ValueError: if the world opens otherwise than the example says, or its reply is no reply.
        """
        self.tell(row, example, said[:-1])
        world = self._worlds[row]
        self._heard.pop(row, None)  # what a step that raises leaves behind is not to be gone on with
        reply = _checked(world.step(said[-1]), world)
        self._heard[row] = (example.meta["seed"], tuple(said))
        return reply


def _checked(returned: Any, world: TextWorld) -> Reply:
    if not isinstance(returned, tuple) or len(returned) != 5:
        raise ValueError(
            f"{type(world).__name__}.step returned {returned!r}; expected (text, reward, terminated, truncated, info)."
        )
    text, reward, terminated, truncated, info = returned
    if not isinstance(text, str) or not math.isfinite(float(reward)):
        raise ValueError(
            f"{type(world).__name__}.step said {text!r} and paid {reward!r}; expected a str and a finite number."
        )
    return Reply(text, float(reward), bool(terminated), bool(truncated) and not terminated, dict(info or {}))
