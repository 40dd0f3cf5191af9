"""The heads inside the model's forward, on the hidden states of the one trunk pass that TRL makes there.

TRL patches ``model.forward`` so that ``fused_lm_head=True`` runs the backbone and returns per-token log-probs, without
logits and without hidden states. Here that forward is wrapped once more: a hook on ``model.base_model`` keeps the last
hidden states, and depths 2 .. K are computed from them before the forward returns. Inside, because only there are a
sharded model's weights whole, and DistributedDataParallel sees only what a forward returns.

Without ``fused_lm_head`` the forward is the class's own, so generation and a deep copy (a frozen reference) know
nothing of this.
"""

import functools
import types
from dataclasses import dataclass
from typing import Any, no_type_check

from jaxtyping import Float, Int
from torch import Tensor, nn
from trl.trainer.utils import FusedCausalLMOutput

from worldmtp.model import MTPModel
from worldmtp.post_training.compat import IncompatibleTRLError
from worldmtp.post_training.depth_sums import DepthSums, sum_depths, targets_from_labels


# accelerate rebuilds an output under autocast from one dict in the place of the first field.
@no_type_check
@dataclass
class MTPFusedOutput(FusedCausalLMOutput):
    """TRL's output with the sums of depths 2 .. K (see ``DepthSums``)."""

    depth_losses: Float[Tensor, " later_depth"] | None = None
    depth_top1_hits: Int[Tensor, " later_depth"] | None = None
    depth_counts: Int[Tensor, " later_depth"] | None = None


class MTPForward:
    """The wrapped forward of one model; it keeps the sums of the last fused call until they are taken."""

    def __init__(self, model: MTPModel) -> None:
        self.model = model
        self._fused_forward = model.forward
        self._is_capturing = False
        self._trunk_hidden: Tensor | None = None
        self._sums: DepthSums | None = None
        self._hook = model.base_model.register_forward_hook(self._capture)

    def take(self) -> DepthSums:
        """The sums of the last fused call, once.

        TRL does not hand its trainers' outputs on, hence this way around.

        Raises:
            RuntimeError: there was no fused call since the last take.
        """
        if self._sums is None:
            raise RuntimeError(
                "no depth sums: the model's fused forward was not called since they were last taken, so the heads "
                "would not be trained. Is the trainer's model another one than its forward was wrapped for?"
            )
        sums, self._sums = self._sums, None
        return sums

    def remove(self) -> None:
        """Give the model its class's forward back, without TRL's fused LM head and without the hook."""
        self._hook.remove()
        vars(self.model).pop("forward", None)

    def fused(self, module: nn.Module, **inputs: Any) -> MTPFusedOutput:
        """TRL's fused forward, then the heads on the hidden states that it passed through.

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
        self._is_capturing = True
        try:
            output = self._fused_forward(fused_lm_head=True, **inputs)
        finally:
            self._is_capturing = False
        trunk_hidden, self._trunk_hidden = self._trunk_hidden, None
        if trunk_hidden is None:
            raise IncompatibleTRLError(
                "TRL's fused forward did not run model.base_model; the heads have nothing to read."
            )
        self._sums = self._sum_depths(trunk_hidden, **inputs)
        return MTPFusedOutput(
            **output,
            depth_losses=self._sums.losses,
            depth_top1_hits=self._sums.top1_hits,
            depth_counts=self._sums.counts,
        )

    def _sum_depths(
        self,
        trunk_hidden: Tensor,
        input_ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **_: Any,
    ) -> DepthSums:
        model = self.model
        latents = model.latents(input_ids, attention_mask, position_ids, trunk_hidden=trunk_hidden)
        targets = targets_from_labels(labels, input_ids, attention_mask, position_ids, model.config.depth)
        return sum_depths(model, latents, targets)

    def _capture(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._is_capturing:
            self._trunk_hidden = output.last_hidden_state


def add_mtp_forward(model: MTPModel) -> MTPForward:
    """Wrap the forward that TRL has patched; call it once, after TRL's trainer is constructed.

    Raises:
        RuntimeError: TRL has not patched the model's forward.
    """
    if "forward" not in vars(model):
        raise RuntimeError(
            f"{type(model).__name__} has its class's own forward, expected TRL's fused one; call add_mtp_forward after "
            "the trainer's __init__ (trl.trainer.utils.add_fused_lm_head)."
        )
    handle = MTPForward(model)

    @functools.wraps(type(model).forward)
    def forward(self: nn.Module, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if fused_lm_head:
            return handle.fused(self, **kwargs)
        # Not the forward that was wrapped: a deep copy carries this function, and that one is bound to the original.
        return type(self).forward(self, *args, **kwargs)

    vars(model)["forward"] = types.MethodType(forward, model)
    return handle
