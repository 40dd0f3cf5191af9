"""The limit on how far one PPO update may move the policy: a step that went beyond it is taken back in part.

The first of many passes over a batch may already stray: where the policy is nearly sure, one Adam step can move it by
several times ``target_kl``, and to stop after that step is too late. The approximate KL is about convex along a step,
so the share of the step at which the line between its two ends reaches the limit is never too long: a backtracking line
search (Schulman et al. 2015, https://arxiv.org/abs/1502.05477, appendix C) that needs no further forward pass.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class TrustRegion:
    """Watches the approximate KL of one update's minibatches, and takes back what went beyond the limit.

    It keeps one copy of the weights that are trained: those before the last step.

    Args:
        weights: what the steps change, in place.
        target_kl: the largest approximate KL to the acting policy, in nats, above 0.
    """

    def __init__(self, weights: Sequence[Tensor], target_kl: float) -> None:
        self._weights, self._limit = weights, target_kl
        self._before: list[Tensor] | None = None
        self._kl = 0.0

    def is_left(self, kl: float) -> bool:
        """Return whether the weights of now have strayed; then the last step is taken back as far as needed.

        Args:
            kl: of the weights of now, in nats. Where minibatches differ in their episodes it is of other episodes than
                the one before, so that the limit then holds about, not exactly.
        """
        if kl <= self._limit:
            self._kl = kl
            return False
        if self._before is not None:
            with torch.no_grad():
                for weight, before in zip(self._weights, self._before, strict=True):
                    weight.lerp_(before, (kl - self._limit) / (kl - self._kl))
        return True

    def keep(self) -> None:
        """Remember the weights of now: a step is about to change them."""
        self._before = [weight.detach().clone() for weight in self._weights]
