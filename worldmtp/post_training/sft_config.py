"""Configuration of MTPSFTTrainer: TRL's SFTConfig, the coefficient of the heads, and defaults for a CPU.

TRL's defaults are a GPU's: bf16 autocast and gradient checkpointing, on a CPU too, where both cost time. Here what the
user did not set follows the machine; what the user set stays. The depth is the model's and not a field of training.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, no_type_check

import torch
from trl import SFTConfig

from worldmtp.objective import MTPObjective


# Run-time type checks (under pytest) would refuse every int given to one of TRL's floats, logging_steps=1 for one.
@no_type_check
@dataclass
class MTPSFTConfig(SFTConfig):
    """SFTConfig with MTP.

    Args:
        mtp_coef: lambda in loss = TRL's loss + lambda * mean over depths 2..K of their cross-entropies. None is the
            model's ``mtp_loss_coef``, which is 0.3 by default, that of most of DeepSeek-V3's training
            (https://arxiv.org/abs/2412.19437, sec. 4.2). With 0 the heads are measured and not trained.
        mtp_objective: ``MTPObjective.to_dict()`` or a part of it: losses, weights of the depths, lambda over training,
            window, frequency. None is cross-entropy and DeepSeek-V3's mean over depths.
        bf16: None is on with an accelerator (TRL's default) and off without.
        gradient_checkpointing: None is on with an accelerator (TRL's default) and off without.
        dataloader_pin_memory: None is on with an accelerator and off without.

    Raises:
        ValueError: a negative coefficient, or an option that the heads cannot follow.
    """

    mtp_coef: float | None = field(
        default=None, metadata={"help": "Weight of the mean loss of depths 2..K. None: the model's mtp_loss_coef."}
    )
    mtp_objective: dict[str, Any] | None = field(
        default=None, metadata={"help": "Fields of MTPObjective. None: cross-entropy, the mean over depths."}
    )
    gradient_checkpointing: bool | None = field(  # type: ignore[assignment] # None until the machine is known
        default=None, metadata={"help": "None: on with an accelerator, off without."}
    )
    dataloader_pin_memory: bool | None = field(  # type: ignore[assignment] # None until the machine is known
        default=None, metadata={"help": "None: on with an accelerator, off without."}
    )

    def __post_init__(self) -> None:
        self._check()
        has_accelerator = torch.accelerator.is_available() and not self.use_cpu
        self.use_cpu = not has_accelerator  # bf16=True on a CPU is refused unless the CPU is asked for
        if self.bf16 is None:
            self.bf16 = has_accelerator and not self.fp16
        if self.dataloader_pin_memory is None:
            self.dataloader_pin_memory = has_accelerator
        self._resolve_checkpointing(has_accelerator)
        if self.ddp_find_unused_parameters is None:
            # The world heads take no part in SFT; DistributedDataParallel would wait for their gradients.
            self.ddp_find_unused_parameters = True
        super().__post_init__()

    def objective(self, mtp_loss_coef: float) -> MTPObjective:
        """The objective asked for; ``mtp_loss_coef`` is the model's, for where nothing else says lambda."""
        if self.mtp_objective is not None and not isinstance(self.mtp_objective, Mapping):
            raise TypeError(
                f"mtp_objective={self.mtp_objective!r} must be a mapping of MTPObjective's fields, or None."
            )
        values = dict(self.mtp_objective or {})
        if "coef" not in values:
            start = mtp_loss_coef if self.mtp_coef is None else self.mtp_coef
            values["coef"] = {"kind": "constant", "start": start}
        return MTPObjective.from_dict(values)

    def _resolve_checkpointing(self, has_accelerator: bool) -> None:
        # transformers renamed gradient_checkpointing to activation_checkpointing and warns about the old name, so only
        # the new one is set where it exists; off is what both mean when left out.
        if self.gradient_checkpointing is not None:
            return
        if hasattr(self, "activation_checkpointing"):
            if self.activation_checkpointing is None:
                self.activation_checkpointing = has_accelerator
        else:
            self.gradient_checkpointing = has_accelerator

    def _check(self) -> None:
        if self.mtp_coef is not None and not (math.isfinite(self.mtp_coef) and self.mtp_coef >= 0):
            raise ValueError(f"mtp_coef={self.mtp_coef}, expected a finite number >= 0, or None for the model's.")
        if self.mtp_coef is not None and "coef" in (self.mtp_objective or {}):
            raise ValueError(f"mtp_coef={self.mtp_coef} and mtp_objective['coef'] both say lambda; give one of them.")
        if self.objective(0.0).coef.unit == "tokens" and self.include_num_input_tokens_seen in ("no", False):
            self.include_num_input_tokens_seen = "non_padding"  # the schedule counts them, and so must a checkpoint
        if self.packing_strategy == "wrapped" and (self.packing or self.eval_packing):
            raise ValueError(
                "packing_strategy='wrapped' cuts documents without marking where they begin, so targets of depth 2 "
                "and beyond would come from the next document; use packing_strategy='bfd' or 'bfd_split'."
            )
        if self.label_smoothing_factor != 0:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor}: TRL then runs the fused forward, and the heads "
                "in it, without gradients; set it to 0."
            )
