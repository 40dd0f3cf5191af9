"""An alarm for drafts that have stopped being right: the trunk moves on, its heads stay, and nobody is told.

Decoding stays exact whatever the heads say, so stale heads show in nothing but speed. In released stacks a lost weight
sync has taken the accepted length from 2.7 to 1.0 unnoticed. Here drafting reads the modules that training changes, so
nothing can be out of step but the weights themselves: how often each side has changed is in the message.
"""

import math
import warnings

from torch import nn

from worldmtp.model import MTPModel


class AcceptanceDropWarning(UserWarning):
    """Drafts yield much less than they did."""


def weights_version(module: nn.Module) -> int:
    """A counter that grows whenever a parameter is written in place: by an optimiser, by ``load_state_dict``.

    It is torch's own, so nobody has to remember to advance it; writes through ``parameter.data`` are not seen.
    """
    return sum(parameter._version for parameter in module.parameters())


class AcceptanceAlarm:
    """Compares what drafts yield with the best there was, and warns once when less than ``min_share`` is left of it.

    What is compared is tokens a forward *beyond the one* that the trunk gives by itself. The alarm is ready again when
    the yield has come back.
    """

    def __init__(self, model: MTPModel, min_share: float = 0.5) -> None:
        if not 0 < min_share < 1:
            raise ValueError(f"min_share={min_share} must lie between 0 and 1.")
        self._model = model
        self._min_share = min_share
        self._best = 1.0
        self._versions_at_best = self._versions()
        self._has_warned = False

    def observe(self, tokens_per_forward: float) -> None:
        """What a batch's rounds yielded; NaN, no round at all, says nothing."""
        if math.isnan(tokens_per_forward):
            return
        if tokens_per_forward > self._best:
            self._best, self._versions_at_best = tokens_per_forward, self._versions()
        fell = tokens_per_forward - 1 < self._min_share * (self._best - 1)
        if fell and not self._has_warned:
            trunk, heads = (now - then for now, then in zip(self._versions(), self._versions_at_best, strict=True))
            warnings.warn(
                f"a trunk forward yields {tokens_per_forward:.2f} tokens with drafts, and yielded {self._best:.2f}. "
                f"Since then the trunk's weights were written {trunk} times and the heads' {heads} times. Texts are "
                "right all the same; train the heads beside the trunk, or draft fewer tokens.",
                AcceptanceDropWarning,
                stacklevel=2,
            )
        self._has_warned = fell

    def _versions(self) -> tuple[int, int]:
        return weights_version(self._model.trunk), weights_version(self._model.heads)
