"""What a trainer logs of the depths: means per target over everything since the last log, of one mode.

Sums and counts are kept, not means, so that the size of a micro-batch does not show: a micro-batch of few targets
weighs little. The same holds for evaluation, where ``metric_for_best_model`` may be one of these means.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class DepthMeans:
    """Sums of cross-entropy, first guesses and acceptance by depth, and the number of their targets.

    ``num_batches`` and ``num_targets`` (of depth 1) count what was seen, with heads run or not.
    """

    num_batches: int = 0
    num_targets: int = 0
    _sums: dict[int, list[float]] = field(default_factory=dict)
    _counts: dict[int, list[float]] = field(default_factory=dict)

    def add(self, depths: Sequence[int], rows: Sequence[Sequence[float]], num_targets: int, accepts: bool) -> None:
        """Add one micro-batch.

        Args:
            depths: that ran.
            rows: their sums of cross-entropy, first guesses and acceptance, and their counts, one entry a depth.
            num_targets: of depth 1.
            accepts: the acceptance was measured.
        """
        self.num_batches += 1
        self.num_targets += num_targets
        for k, ce, hits, accepted, count in zip(depths, *rows, strict=True):
            measured = (count, count, count if accepts else 0.0)
            sums, counts = self._sums.setdefault(k, [0.0] * 3), self._counts.setdefault(k, [0.0] * 3)
            for i, (value, weight) in enumerate(zip((ce, hits, accepted), measured, strict=True)):
                sums[i] += value if weight else 0.0
                counts[i] += weight

    def take(self, prefix: str) -> dict[str, float]:
        """The means by tag, ``prefix`` in front, of what has a target; all counts begin anew."""
        means = {
            f"{prefix}mtp/{name}_depth_{k}": self._sums[k][i] / self._counts[k][i]
            for k in sorted(self._sums)
            for i, name in enumerate(("loss", "top1", "acceptance"))
            if self._counts[k][i]
        }
        self.num_batches = self.num_targets = 0
        self._sums, self._counts = {}, {}
        return means
