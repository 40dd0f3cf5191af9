"""What a trainer logs: means per target of each depth, and a callback that passes every number on to the run.

Sums and counts are kept, not means, so that the size of a micro-batch does not show: a micro-batch of few targets
weighs little. The same holds for evaluation, where ``metric_for_best_model`` may be one of these means.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from worldmtp.tracking import MetricWriter

_KINDS = ("loss", "top1", "acceptance")


class DepthMeans:
    """Keep sums of cross-entropy, first guesses and acceptance by depth since the last log, and their targets.

    All of it is one tensor on the device, which is read when it is taken; a micro-batch only adds to it.

    Args:
        num_depths: of the model.
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
        """Add one micro-batch of this process.

        Args:
            depths: that ran.
            sums: of cross-entropy, first guesses and acceptance, by depth.
            counts: targets of each depth.
            num_targets: of depth 1.
            accepts: the acceptance was measured.
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
