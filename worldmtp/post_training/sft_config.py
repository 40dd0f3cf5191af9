"""Configuration of MTPSFTTrainer: TRL's SFTConfig, the heads' objective, and defaults for a CPU.

TRL's defaults are a GPU's: bf16 autocast and gradient checkpointing, on a CPU too, where both cost time. Here what the
user did not set follows the machine; what the user set stays. The depth is the model's and not a field of training.
"""

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
        mtp_objective: ``MTPObjective.to_dict()`` or a part of it: lambda over training, losses, weights of the depths,
            window, frequency. None is DeepSeek-V3's, cross-entropy with lambda 0.3. With ``{"coef": {"start": 0}}`` the
            heads are measured and not trained.
        bf16: None is on with an accelerator (TRL's default) and off without.
        gradient_checkpointing: None is on with an accelerator (TRL's default) and off without.
        dataloader_pin_memory: None is on with an accelerator and off without.

    Raises:
        ValueError: a negative coefficient, or an option that the heads cannot follow.
    """

    mtp_objective: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "Fields of MTPObjective. None: cross-entropy, lambda 0.3 on the mean over depths."},
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

    def build_objective(self) -> MTPObjective:
        """Return the objective that ``mtp_objective`` describes.

        Raises:
            TypeError: it is no mapping, or a value is of the wrong type.
            ValueError: a key is unknown, or a value is outside its range.
        """
        if self.mtp_objective is not None and not isinstance(self.mtp_objective, Mapping):
            raise TypeError(
                f"mtp_objective={self.mtp_objective!r} must be a mapping of MTPObjective's fields, or None."
            )
        return MTPObjective.from_dict(self.mtp_objective or {})

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
        if self.build_objective().coef.unit == "tokens" and self.include_num_input_tokens_seen in ("no", False):
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
