"""Rewards of any size, settled when a game is over: returns in [0, 1] are what the heads' bins span."""

import math
from collections.abc import Sequence

Returns = Sequence[int | float]
"""The return that is worth 0 and the one that is worth 1."""


class Settlement:
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
        if not terminated:
            return 0.0
        return (min(max(self._collected, self.low), self.high) - self.low) / (self.high - self.low)
