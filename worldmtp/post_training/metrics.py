"""What a trainer logs: means per target of each depth, and a callback that passes every number on to the run.

Sums and counts are kept, not means, so that the size of a micro-batch does not show: a micro-batch of few targets
weighs little. The same holds for evaluation, where ``metric_for_best_model`` may be one of these means.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from worldmtp.post_training.cosine import GradientCosines
from worldmtp.post_training.forward import HeadLoss
from worldmtp.tracking import MetricWriter
from worldmtp.tracking.late_numbers import Check, LateNumbers

_KINDS = ("loss", "top1", "acceptance")


class DepthMeans:
    """Keep sums of cross-entropy, first guesses and acceptance by depth since the last log, and their targets.

    All of it is one tensor on the device, which is read when it is taken; a micro-batch only adds to it.
    """

    def __init__(self, num_depths: int) -> None:
        self._num_depths = num_depths
        self._start()

    def _start(self) -> None:
        self.num_batches = 0
        """Micro-batches that were seen, with heads run or not."""
        self._state: Tensor | None = None
        """A row for each of the kinds, then the counts of each, and the targets of depth 1; a column for each depth."""

    def add(
        self,
        depths: Sequence[int],
        sums: Float[Tensor, "kind depth"],
        counts: Shaped[Tensor, " depth"],
        num_targets: Int[Tensor, ""],
        accepts: bool,
    ) -> None:
        """Add one micro-batch of this process, of the ``depths`` that ran.

        ``sums`` are of cross-entropy, first guesses and, if ``accepts``, acceptance; ``counts`` are the depths' targets
        and ``num_targets`` those of depth 1.
        """
        self.num_batches += 1
        if self._state is None:
            self._state = torch.zeros(7, self._num_depths, dtype=torch.float64, device=num_targets.device)
        self._state[6, 0] += num_targets
        measured = len(_KINDS) if accepts else len(_KINDS) - 1
        for column, depth in enumerate(depths):
            self._state[:measured, depth - 1] += sums[:measured, column]
            self._state[3 : 3 + measured, depth - 1] += counts[column]

    def take(self, prefix: str, over_processes: Callable[[Tensor], Tensor]) -> tuple[dict[str, float], int]:
        """Return the means of what has a target by tag, with ``prefix`` in front, and the targets of depth 1.

        Starts again from zero. ``over_processes`` adds a tensor up over all of them.
        """
        if self._state is None:
            return {}, 0
        *sums, seen = over_processes(self._state).tolist()
        means = {
            f"{prefix}mtp/{name}_depth_{k}": sums[kind][k - 1] / sums[len(_KINDS) + kind][k - 1]
            for k in range(1, self._num_depths + 1)
            for kind, name in enumerate(_KINDS)
            if sums[len(_KINDS) + kind][k - 1]
        }
        self._start()
        return means, int(seen[0])


class TermMeans:
    """Keep the terms of PPO's loss since the last log, a row a micro-batch, which are read when they are taken."""

    tags: ClassVar[dict[str, str]] = {
        "policy": "ppo/policy_loss",
        "value": "ppo/value_loss",
        "entropy": "entropy",
        "kl_reference": "kl",
        "approx_kl": "ppo/approx_kl",
        "clip_fraction": "ppo/clip_fraction",
    }

    def __init__(self) -> None:
        self._kept: list[Float[Tensor, " number"]] = []

    def add(self, terms: Mapping[str, Tensor], share: Tensor, num_decisions: Tensor) -> None:
        """Add a micro-batch of this process: its terms times ``share`` are sums over its ``num_decisions``."""
        sums = [terms[f"losses/{name}"].detach() * share for name in self.tags]
        self._kept.append(torch.stack([*sums, num_decisions.to(sums[0].dtype), terms["losses/ratio_max"].detach()]))

    def take(self, accelerator: Accelerator) -> list[dict[str, float]]:
        """Return each micro-batch's means over the decisions of all processes, by tag; those without one are left out.

        Starts again with none.
        """
        kept, self._kept = self._kept, []
        if not kept:
            return []
        rows = torch.stack(kept)
        largest = accelerator.gather(rows[None, :, -1]).amax(dim=0).tolist()
        summed = accelerator.reduce(rows[:, :-1].clone(), reduction="sum").tolist()
        return [
            {tag: total / count for tag, total in zip(self.tags.values(), totals, strict=True)}
            | {"ppo/ratio_max": ratio}
            for (*totals, count), ratio in zip(summed, largest, strict=True)
            if count
        ]


class StepNumbers:
    """What the heads' losses say between two logs, and the seconds of the host that went into it.

    Args:
        num_depths: of the model.
        check: called with the terms of each micro-batch and its step when they have arrived.
    """

    def __init__(self, num_depths: int, check: Check) -> None:
        self.means = {mode: DepthMeans(num_depths) for mode in ("train", "eval")}
        self.late = LateNumbers(check, keeps=False)
        self.cosines = GradientCosines()
        self._seconds = 0.0

    def add_terms(self, loss: Float[Tensor, ""], later: HeadLoss, step: int) -> None:
        """Have a micro-batch's loss, and those of its depths, checked when they arrive."""
        with self._timed():
            terms = {"loss": loss, "mtp/loss": later.total}
            terms |= {f"mtp/loss_depth_{k}": ce for k, ce in zip(later.depths, later.sums.ce, strict=True)}
            self.late.add(terms, step)

    def add_depths(self, mode: str, later: HeadLoss, accepts: bool) -> None:
        """Add a micro-batch's sums, of ``train`` or ``eval``."""
        with self._timed():
            sums = later.sums
            rows = torch.stack([row.double() for row in (sums.ce, sums.top1_hits, sums.accepted)])
            self.means[mode].add(later.depths, rows, sums.counts, later.num_targets, accepts)

    def take(self, mode: str, prefix: str, over_processes: Callable[[Tensor], Tensor]) -> tuple[dict[str, float], int]:
        """Check what has not arrived, and return what ``DepthMeans.take`` does."""
        with self._timed():
            self.late.take()
            return self.means[mode].take(prefix, over_processes)

    def take_seconds(self) -> float:
        """Return the seconds since the last time."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - start


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
