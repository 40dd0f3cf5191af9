"""The heads inside the model's forward, on the hidden states of the one trunk pass that TRL makes there.

TRL patches ``model.forward`` so that ``fused_lm_head=True`` runs the backbone and returns per-token log-probs, without
logits and without hidden states. Here that forward is wrapped once more: what the heads read of the trunk is recorded
during it, and the depths planned for the step are computed from that before the forward returns. Inside, because only
there are a sharded model's weights whole, and DistributedDataParallel sees only what a forward returns.

Without ``fused_lm_head`` the forward is the class's own, so generation and a deep copy (a frozen reference) know
nothing of this.
"""

import functools
import types
from dataclasses import dataclass
from typing import Any, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn
from trl.trainer.utils import FusedCausalLMOutput

from worldmtp.model import MTPModel
from worldmtp.objective import MTPObjective
from worldmtp.objective.loss import MultiTokenLoss, evaluation_plan, multi_token_loss
from worldmtp.objective.plan import StepPlan
from worldmtp.post_training.compat import IncompatibleTRLError


# accelerate rebuilds an output under autocast from one dict in the place of the first field.
@no_type_check
@dataclass
class MTPFusedOutput(FusedCausalLMOutput):
    """TRL's output with the summed loss of the later depths, without lambda."""

    mtp_loss: Float[Tensor, ""] | None = None


class MTPForward:
    """The wrapped forward of one model; it keeps the loss of the last fused call until it is taken."""

    def __init__(self, model: MTPModel, objective: MTPObjective) -> None:
        self.model = model
        self.objective = objective
        self._fused_forward = model.forward
        self._plan = evaluation_plan(model.config.depth)
        self._with_acceptance = False
        self._trains = True
        self._teacher_hidden: Tensor | None = None
        self._loss: MultiTokenLoss | None = None

    def prepare(
        self,
        plan: StepPlan,
        with_acceptance: bool = False,
        teacher_hidden: Float[Tensor, "batch time hidden"] | None = None,
        trains: bool = True,
    ) -> None:
        """Set what the next fused calls compute; the teacher's states serve one call.

        With ``trains=False`` the loss is measured, without gradients.
        """
        self._trains = trains
        self._plan = plan
        self._with_acceptance = with_acceptance
        self._teacher_hidden = teacher_hidden

    def take(self) -> MultiTokenLoss:
        """Return the loss of the last fused call, once: TRL does not pass a model's outputs to its trainer.

        Raises:
            RuntimeError: there was no fused call since the last take.
        """
        if self._loss is None:
            raise RuntimeError(
                "no depth sums: the model's fused forward was not called since they were last taken, so the heads "
                "would not be trained. Is the trainer's model another one than its forward was wrapped for?"
            )
        loss, self._loss = self._loss, None
        return loss

    def remove(self) -> None:
        """Restore the forward of the model's class, without TRL's fused LM head."""
        vars(self.model).pop("forward", None)

    def fused(self, module: nn.Module, **inputs: Any) -> MTPFusedOutput:
        """Run TRL's fused forward, then the heads on the hidden states that it passed through.

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
        with self.model.recording() as recorded:
            output = self._fused_forward(fused_lm_head=True, **inputs)
        try:
            features = recorded.features()
        except RuntimeError as error:
            raise IncompatibleTRLError(
                "TRL's fused forward did not run model.base_model; the heads have nothing to read."
            ) from error
        teacher_hidden, self._teacher_hidden = self._teacher_hidden, None
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._trains):
            self._loss = multi_token_loss(
                self.model,
                features,
                inputs["input_ids"],
                inputs["labels"],
                self.objective,
                self._plan,
                attention_mask=inputs.get("attention_mask"),
                position_ids=inputs.get("position_ids"),
                teacher_hidden=teacher_hidden,
                with_acceptance=self._with_acceptance,
            )
        return MTPFusedOutput(**output, mtp_loss=self._loss.total)


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
