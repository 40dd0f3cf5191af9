"""A warning that nothing can be learnt: for many iterations all episodes have had one and the same return.

Without a difference there is nothing that an update could prefer, whatever the estimator of advantages; what still
moves the policy is its entropy bonus, its leash and noise. A run goes on, since a reward may still be found by chance.
"""

import warnings
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NUM_FLAT_ITERATIONS = 10
"""Iterations in a row whose returns are all equal before that is said: a rare reward may come late, by itself."""

_ROUNDING = 8 * torch.finfo(torch.float32).eps
_TRY_IN_A_WORLD = (
    "a mask of legal moves (env.wrappers with action_mask and a rule of your own), shorter episodes or turns "
    "(++env.kwargs.max_new=... ++env.kwargs.max_turn=...), more exploration (agent.rollout.temperature, "
    "agent.ppo.ent_coef, more episodes an iteration), or demonstrations to start from (sft)"
)
_TRY_IN_A_TASK = (
    "easier questions, a score that pays for parts of an answer, more answers to a prompt (agent.rollout.group_size), "
    "a higher agent.rollout.temperature, or a longer warm start (sft.num_steps)"
)


class FlatReturnsWarning(UserWarning):
    """All episodes of many iterations have had the same return, below the top."""


class FlatReturns:
    """Counts iterations whose returns are all equal, and warns once when there are ``NUM_FLAT_ITERATIONS`` in a row.

    Equal means equal but for rounding in float32, within an iteration and with the one before. Returns that are all at
    the top, ``top`` or every episode exact, are a task that is solved, and count as no such iteration.
    """

    def __init__(self, top: float, replies: bool) -> None:
        self._top = top
        self._advice = _TRY_IN_A_WORLD if replies else _TRY_IN_A_TASK
        self._value: float | None = None
        self._count = 0
        self.note: str | None = None
        """What was warned of, for the end of a run; None where there was nothing."""

    def observe(self, iteration: int, returns: Float[Tensor, " episode"], exact: Bool[Tensor, " episode"]) -> None:
        """Record the batch of an iteration; ``iteration`` counts from 1."""
        low, high = float(returns.min()), float(returns.max())
        if not self._is_close(low, high) or bool(exact.all()) or low >= self._top or self._is_close(low, self._top):
            self._value, self._count = None, 0
            return
        if self._value is None or not self._is_close(low, self._value):
            self._value, self._count = low, 0
        self._count += 1
        if self._count >= NUM_FLAT_ITERATIONS and self.note is None:
            self.note = (
                f"all returns of iterations {iteration - self._count + 1} to {iteration} were {self._value:.3g}, so "
                f"that nothing could be learnt from them. Try {self._advice}. `worldmtp envs check` tells what random "
                "play earns."
            )
            warnings.warn(self.note, FlatReturnsWarning, stacklevel=2)

    def _is_close(self, one: float, other: float) -> bool:
        return abs(one - other) <= _ROUNDING * max(1.0, abs(self._top))

    def state_dict(self) -> dict[str, Any]:
        """Return what has been seen and said."""
        return {"value": self._value, "count": self._count, "note": self.note}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._value, self._count, self.note = state["value"], int(state["count"]), state["note"]
