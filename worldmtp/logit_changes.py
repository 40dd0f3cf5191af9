"""What some trunks do to the logits of their LM head: Cohere, Falcon-H1 and Granite scale them, Gemma caps them.

Heads that share the LM head have to do the same, so it is read from the trunk's config here and not left to the trunk.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig


@dataclass(frozen=True)
class LogitChanges:
    """Applied in this order; None where the trunk has no such field."""

    scale: float | None
    divisor: float | None
    cap: float | None

    @classmethod
    def of(cls, trunk_config: PreTrainedConfig) -> "LogitChanges":
        """Those of a trunk."""
        config = trunk_config.get_text_config()
        names = ("logit_scale", "output_multiplier", "lm_head_multiplier")
        scale = next((value for name in names if (value := getattr(config, name, None)) is not None), None)
        divisor = getattr(config, "logits_scaling", None)
        if config.model_type == "hyperclovax":  # multiplies by what Granite, under the same name, divides by
            scale, divisor = divisor, None
        return cls(scale, divisor, getattr(config, "final_logit_softcapping", None))

    def __bool__(self) -> bool:
        return any(change is not None for change in (self.scale, self.divisor, self.cap))

    def __call__(self, logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
        """The logits as the trunk gives them."""
        if self.scale is not None:
            logits = logits * self.scale
        if self.divisor is not None:
            logits = logits / self.divisor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap
