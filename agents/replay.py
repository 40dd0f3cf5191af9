"""Real episodes of the last iterations, for training the world model."""

from collections import deque
from dataclasses import fields
from typing import Any

import torch

from worldmtp.agents.trajectory import Rollout


class EpisodeReplay:
    """The last ``capacity`` rollouts, on the host; draws are uniform over episodes. O(length) ids an episode."""

    def __init__(self, capacity: int) -> None:
        self._rollouts: deque[Rollout] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return sum(len(rollout) for rollout in self._rollouts)

    def add(self, rollout: Rollout) -> None:
        """Keep a rollout, dropping the oldest beyond capacity."""
        self._rollouts.append(rollout.to("cpu"))

    def sample(self, num_episodes: int, generator: torch.Generator) -> Rollout:
        """Episodes drawn with replacement.

        Raises:
            ValueError: nothing was added yet.
        """
        if not self._rollouts:
            raise ValueError("the replay is empty; add a rollout before sampling from it.")
        drawn = torch.randint(len(self), (num_episodes,), generator=generator)
        start, parts = 0, []
        for rollout in self._rollouts:
            inside = drawn[(drawn >= start) & (drawn < start + len(rollout))] - start
            if len(inside):
                parts.append(rollout.select(inside))
            start += len(rollout)
        return Rollout(
            **{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Rollout)}
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        names = [field.name for field in fields(Rollout)]
        return {"rollouts": [{name: getattr(kept, name) for name in names} for kept in self._rollouts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore."""
        self._rollouts.clear()
        self._rollouts.extend(Rollout(**kept).to("cpu") for kept in state["rollouts"])
