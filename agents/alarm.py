"""An alarm for drafts that have become worse: the trunk has been trained on, its heads have not.

Decoding stays exact whatever the heads say, so stale heads show in nothing but speed. In released stacks a lost weight
sync has taken the accepted length from 2.7 to 1.0 unnoticed. Here drafting reads the modules that training changes, so
nothing can be out of step but the weights themselves: how often each side has changed is in the message.
"""

import math
import warnings
from typing import Any

from torch import nn

from worldmtp.model import MTPModel


class AcceptanceDropWarning(UserWarning):
    """Drafts yield much less than they did."""


def weights_versions(module: nn.Module) -> tuple[int, ...]:
    """Return a counter per parameter that grows with each write in place, by an optimiser or ``load_state_dict``.

    They are torch's own, so nobody has to remember to advance them. Not seen are writes through ``parameter.data``, by
    fused optimisers and by ``load_state_dict(assign=True)``; tensors made in inference mode have no counter.
    """
    return tuple(0 if parameter.is_inference() else parameter._version for parameter in module.parameters())


_LEAST_SHARE = 0.5
"""Of the best yield beyond one token a forward: with less left, the heads are of another policy."""


class AcceptanceAlarm:
    """Compares what drafts yield with the best there was, and warns once when less than half is left of it.

    What is compared is tokens a forward *beyond the one* that the trunk gives by itself. The alarm is ready again when
    the yield has come back.
    """

    def __init__(self, model: MTPModel) -> None:
        self._model = model
        self._best = 1.0
        self._versions_at_best = self._versions()
        self._since = "Since then"
        self._has_warned = False

    def observe(self, tokens_per_forward: float) -> None:
        """Record what a batch's rounds yielded; NaN, where there was no round, is ignored."""
        if math.isnan(tokens_per_forward):
            return
        if tokens_per_forward > self._best:
            self._best, self._versions_at_best = tokens_per_forward, self._versions()
            self._since = "Since then"
        fell = tokens_per_forward - 1 < _LEAST_SHARE * (self._best - 1)
        if fell and not self._has_warned:
            trunk, heads = map(_num_writes, self._versions_at_best, self._versions())
            warnings.warn(
                f"a trunk forward yields {tokens_per_forward:.2f} tokens with drafts, and yielded {self._best:.2f}. "
                f"{self._since} the trunk's weights were written {trunk} times and the heads' {heads} times. Texts are "
                "right all the same; train the heads beside the trunk, or draft fewer tokens.",
                AcceptanceDropWarning,
                stacklevel=2,
            )
        self._has_warned = fell

    def state_dict(self) -> dict[str, Any]:
        """Return what has been seen; counts of writes mean nothing to another process."""
        return {"best": self._best, "has_warned": self._has_warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._best, self._has_warned = float(state["best"]), bool(state["has_warned"])
        self._versions_at_best, self._since = self._versions(), "Since this run was resumed"

    def _versions(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return weights_versions(self._model.trunk), weights_versions(self._model.heads)


def _num_writes(before: tuple[int, ...], after: tuple[int, ...]) -> int:
    """Return the writes of the parameter written most often, so that trunk and heads compare whatever their size."""
    return max((now - then for then, now in zip(before, after, strict=False)), default=0)
