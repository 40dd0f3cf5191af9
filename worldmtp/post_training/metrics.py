"""What a trainer logs: means per target of each depth, and a callback that passes every number on to the run.

Sums and counts are kept, not means, so that the size of a micro-batch does not show: a micro-batch of few targets
weighs little. The same holds for evaluation, where ``metric_for_best_model`` may be one of these means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from worldmtp.tracking import MetricWriter


@dataclass
class DepthMeans:
    """Keep sums of cross-entropy, first guesses and acceptance by depth since the last log, and their targets.

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
        """Return the means of what has a target by tag, with ``prefix`` in front, and start again from zero."""
        means = {
            f"{prefix}mtp/{name}_depth_{k}": self._sums[k][i] / self._counts[k][i]
            for k in sorted(self._sums)
            for i, name in enumerate(("loss", "top1", "acceptance"))
            if self._counts[k][i]
        }
        self.num_batches = self.num_targets = 0
        self._sums, self._counts = {}, {}
        return means


@dataclass
class DraftMeans:
    """Keep what drafts brought while sampling, since the last log."""

    _sums: list[float] | None = None

    def add(self, sums: Sequence[float]) -> None:
        """Add tokens, rounds and, for each depth from 2 on, drafts and those of them accepted up to there."""
        known = self._sums or [0.0] * len(sums)
        self._sums = [a + b for a, b in zip(known, sums, strict=True)]

    def take(self, prefix: str) -> dict[str, float]:
        """Return the tokens of a row per forward of the trunk and the shares accepted, and start again from zero."""
        if self._sums is None:
            return {}
        tokens, rounds, *by_depth = self._sums
        drafted, accepted = by_depth[: len(by_depth) // 2], by_depth[len(by_depth) // 2 :]
        means = {f"{prefix}mtp/tokens_per_forward": tokens / rounds} if rounds else {}
        for i, (made, kept) in enumerate(zip(drafted, accepted, strict=True)):
            if made:
                means[f"{prefix}mtp/accepted_depth_{i + 2}"] = kept / made
        self._sums = None
        return means


class MetricWriterCallback(TrainerCallback):
    """Write every logged number as ``prefix + name`` at ``step_offset + global_step``, on the main process only.

    Args:
        writer: where the scalars go.
        prefix: put before every name as it is, "sft/" for example.
        step_offset: where this phase starts on the run's x axis.
    """

    def __init__(self, writer: MetricWriter, prefix: str = "", step_offset: int = 0) -> None:
        self.writer = writer
        self.prefix = prefix
        self.step_offset = step_offset

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the numbers of one log record; text is not a scalar and is left out."""
        if logs is None or not state.is_world_process_zero:
            return
        scalars = {
            f"{self.prefix}{name}": float(value)
            for name, value in logs.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        if scalars:
            self.writer.scalars(scalars, self.step_offset + state.global_step)
