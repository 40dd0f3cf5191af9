"""The heads inside the model's forward, on the hidden states of the one trunk pass that TRL makes there.

TRL patches ``model.forward`` so that ``fused_lm_head=True`` runs the backbone and returns per-token log-probs, without
logits and without hidden states. Here that forward is wrapped once more: what the heads read of the trunk is recorded
during it, and the depths planned for the step are computed from that before the forward returns. Inside, because only
there are a sharded model's weights whole, and DistributedDataParallel sees only what a forward returns. A loss may take
several such passes (chunks of a batch), whose sums are added, and passes without gradients (a reference, an old
policy), in which no head runs.

Without ``fused_lm_head`` the forward is the class's own, so generation and a deep copy (a frozen reference) know
nothing of this.
"""

import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from trl.trainer.utils import FusedCausalLMOutput

from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.model.ema import EMATrunk
from worldmtp.model.trunk import TrunkFeatures
from worldmtp.objective import MTPObjective
from worldmtp.objective.fused import DepthSums
from worldmtp.objective.loss import MultiTokenLoss, evaluation_plan, multi_token_loss
from worldmtp.objective.plan import StepPlan
from worldmtp.post_training.compat import IncompatibleTRLError
from worldmtp.post_training.token_sets import TokenChoice, num_targets

DETACH_SWITCHES = ("detach_trunk", "detach_embedding", "detach_lm_head")


# accelerate rebuilds an output under autocast from one dict in the place of the first field.
@no_type_check
@dataclass
class MTPFusedOutput(FusedCausalLMOutput):
    """TRL's output with the summed loss of the later depths, without lambda, and what a ``reader`` read."""

    mtp_loss: Float[Tensor, ""] | None = None
    mtp_reading: Any = None


@dataclass(frozen=True)
class HeadTask:
    """What the heads do in the fused calls of one loss.

    Attributes:
        plan: depths, weights and positions.
        tokens: which tokens they learn.
        trains: False measures the loss without gradients.
        detach: the loss has gradients by the heads alone, whatever the model's own switches say.
        without_gradients: heads run in passes without gradients too: in evaluation, where all are such. In training
            these passes are of references and old policies, and no head runs there.
        with_acceptance: measure the acceptance by the trunk, even if no term needs it.
        teacher: the trunk's moving average, in the trunk's place as teacher.
    """

    plan: StepPlan
    tokens: TokenChoice = field(default_factory=TokenChoice)
    trains: bool = True
    detach: bool = False
    without_gradients: bool = False
    with_acceptance: bool = False
    teacher: EMATrunk | None = None


@dataclass(frozen=True)
class HeadLoss(MultiTokenLoss):
    """The loss of the fused calls so far, and how many tokens they had to learn: targets of depth 1."""

    num_targets: Int[Tensor, ""]


Reader = Callable[[TrunkFeatures, Mapping[str, Any]], Any]
"""(features of the pass, its inputs) -> a tensor, or a dict of them: what a trainer's own head says, a value's say."""


class MTPForward:
    """The wrapped forward of one model; it keeps the losses of its fused calls until they are taken.

    Attributes:
        task: what the heads do; None: they do not run. At first all depths are measured in every pass.
        reader: called in every fused pass, with gradients or not; what it returns is the output's ``mtp_reading``.
    """

    def __init__(self, model: MTPModel, objective: MTPObjective) -> None:
        self.model = model
        self.objective = objective
        self.task: HeadTask | None = HeadTask(evaluation_plan(model.config.depth), without_gradients=True)
        self.reader: Reader | None = None
        self._fused_forward = model.forward
        self._losses: list[HeadLoss] = []

    @contextmanager
    def during(self, task: HeadTask) -> Iterator[None]:
        """Let the heads do a task in the fused calls made inside, and forget what was not taken."""
        before, self.task, self._losses = self.task, task, []
        try:
            yield
        finally:
            self.task, self._losses = before, []

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Run no head in the fused calls made inside."""
        before, self.task = self.task, None
        try:
            yield
        finally:
            self.task = before

    def take(self) -> HeadLoss:
        """Return the loss of all fused calls since the last take: TRL does not pass a model's outputs to its trainer.

        Raises:
            RuntimeError: the heads did not run since then.
        """
        if not self._losses:
            raise RuntimeError(
                "no depth sums: the model's fused forward was not called since they were last taken, so the heads "
                "would not be trained. Is the trainer's model another one than its forward was wrapped for?"
            )
        losses, self._losses = self._losses, []
        return losses[0] if len(losses) == 1 else _added(losses)

    def remove(self) -> None:
        """Restore the forward of the model's class, without TRL's fused LM head."""
        vars(self.model).pop("forward", None)

    def fused(self, module: nn.Module, **inputs: Any) -> FusedCausalLMOutput:
        """Run TRL's fused forward, then what is to be read of the hidden states that it passed through.

        Raises:
            RuntimeError: ``module`` is a copy of the model this forward was made for.
            ValueError: there are no labels to predict.
            IncompatibleTRLError: TRL's forward takes another way than through ``model.base_model``.
        """
        if module is not self.model:
            raise RuntimeError(
                "this fused forward belongs to another model, of which this one is a copy; make a trainer for the "
                "copy, or call MTPSFTTrainer.release_model() before copying."
            )
        if inputs.get("labels") is None:
            raise ValueError(
                f"the fused forward needs labels and got {sorted(inputs)}; sequence parallelism, which passes "
                "shift_labels, is not supported with MTP heads."
            )
        task = self.task
        if task is not None and not (torch.is_grad_enabled() or task.without_gradients):
            task = None
        if task is None and self.reader is None:
            plain: Any = self._fused_forward(fused_lm_head=True, **inputs)
            return plain
        with self.model.recording() as recorded:
            output = self._fused_forward(fused_lm_head=True, **inputs)
        try:
            features = recorded.features()
        except RuntimeError as error:
            raise IncompatibleTRLError(
                "TRL's fused forward did not run model.base_model; the heads have nothing to read."
            ) from error
        reading = None if self.reader is None else self.reader(features, inputs)
        if task is None:
            return MTPFusedOutput(**output, mtp_reading=reading)
        self._losses.append(self._run(task, features, inputs))
        return MTPFusedOutput(**output, mtp_loss=self._losses[-1].total, mtp_reading=reading)

    def _run(self, task: HeadTask, features: TrunkFeatures, inputs: Mapping[str, Any]) -> HeadLoss:
        """Return the loss of the rows that are learnt from; the others' heads need not run."""
        texts: dict[str, Any] = {name: inputs.get(name) for name in ("input_ids", "attention_mask", "position_ids")}
        labels = task.tokens.labels(labels=inputs["labels"], **texts)
        rows = task.tokens.rows
        if rows is not None and not bool(rows.all()):
            # One row at least: sharded heads are gathered by all processes or by none.
            kept = rows.nonzero().squeeze(-1) if bool(rows.any()) else torch.zeros_like(rows[:1], dtype=torch.long)
            num_rows = len(labels)
            features, labels = features.map(lambda hidden: hidden[kept]), labels[kept]
            texts = {
                name: value[kept] if value is not None and len(value) == num_rows else value
                for name, value in texts.items()
            }
        teacher_hidden = None
        if task.teacher is not None and task.plan.is_active:
            teacher_hidden = task.teacher.hidden(**self.model.trunk_inputs(**texts))
        gradients = torch.is_grad_enabled() and task.trains
        with torch.set_grad_enabled(gradients), _detached(self.model.config, task.detach):
            loss = multi_token_loss(
                self.model,
                features,
                labels=labels,
                objective=self.objective,
                plan=task.plan,
                teacher_hidden=teacher_hidden,
                with_acceptance=task.with_acceptance,
                **texts,
            )
        return HeadLoss(loss.total, loss.depths, loss.sums, num_targets(labels))


@contextmanager
def _detached(config: MTPConfig, detach: bool) -> Iterator[None]:
    """Close the config's gradient switches inside; they are read while the heads run."""
    before = {name: getattr(config, name) for name in DETACH_SWITCHES}
    try:
        for name in DETACH_SWITCHES if detach else ():
            setattr(config, name, True)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def _added(losses: Sequence[HeadLoss]) -> HeadLoss:
    """Return the sum of losses of one plan."""
    sums = {part.name: sum(getattr(loss.sums, part.name) for loss in losses) for part in fields(DepthSums)}
    total = torch.stack([loss.total for loss in losses]).sum()
    return HeadLoss(total, losses[0].depths, DepthSums(**sums), torch.stack([x.num_targets for x in losses]).sum())


def add_mtp_forward(model: MTPModel, objective: MTPObjective | None = None) -> MTPForward:
    """Wrap the forward that TRL has patched; call it once, after TRL's trainer is constructed.

    Raises:
        RuntimeError: TRL has not patched the model's forward.
    """
    if "forward" not in vars(model):
        raise RuntimeError(
            f"{type(model).__name__} has its class's own forward, expected TRL's fused one; call add_mtp_forward after "
            "the trainer's __init__ (trl.trainer.utils.add_fused_lm_head)."
        )
    handle = MTPForward(model, MTPObjective() if objective is None else objective)

    @functools.wraps(type(model).forward)
    def forward(self: nn.Module, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if fused_lm_head:
            return handle.fused(self, **kwargs)
        # Not the forward that was wrapped: a deep copy carries this function, and that one is bound to the original.
        return type(self).forward(self, *args, **kwargs)

    vars(model)["forward"] = types.MethodType(forward, model)
    return handle
