"""What every trainer's configuration adds to TRL's: the heads' objective, and defaults that follow the machine."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, no_type_check

import torch

from worldmtp.choices import check_choice
from worldmtp.objective import MTPObjective
from worldmtp.post_training.token_sets import TOKEN_SETS

if TYPE_CHECKING:
    from trl.trainer.base_config import _BaseConfig as _Arguments
else:
    _Arguments = object


# Run-time type checks (under pytest) would refuse every int given to one of TRL's floats, logging_steps=1 for one.
@no_type_check
@dataclass
class MTPConfigMixin(_Arguments):
    """Put it before a configuration of TRL's.

    TRL's own defaults are a GPU's: bf16 autocast and gradient checkpointing, on a CPU too, where both cost time. Here
    what the user did not set follows the machine.

    Args:
        mtp_objective: ``MTPObjective.to_dict()`` or a part of it: lambda over training, losses, weights of the depths,
            window, frequency. None is DeepSeek-V3's, cross-entropy with lambda 0.3. With ``{"coef": {"start": 0}}`` the
            heads are measured and not trained.
        mtp_tokens: which tokens the heads learn, one of ``TOKEN_SETS``.
        mtp_detach: the heads' loss moves the heads alone. False leaves it to the model's ``detach_trunk``,
            ``detach_embedding`` and ``detach_lm_head``, by which it moves the trunk too unless they say otherwise.
        mtp_max_grad_norm: bound on the heads' gradients, which are clipped apart from the trunk's; None is
            ``max_grad_norm``.
        mtp_cosine_steps: each so many steps, where the heads' loss moves the trunk, the cosine between its gradient and
            that of the trainer's own loss is logged, by the trunk's last layer; 0 never. Sharded weights have none.
        bf16: None is on with an accelerator (TRL's default) and off without.
        gradient_checkpointing: None is on with an accelerator (TRL's default) and off without.
        dataloader_pin_memory: None is on with an accelerator and off without.

    Raises:
        ValueError: a value outside its range, or an option that the heads cannot follow.
    """

    _refused: ClassVar[dict[str, str]] = {}
    """Options that must keep a value that is false, and what to do instead."""
    _token_sets: ClassVar[tuple[str, ...]] = TOKEN_SETS

    mtp_objective: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "Fields of MTPObjective. None: cross-entropy, lambda 0.3 on the mean over depths."},
    )
    mtp_tokens: str = field(
        default="policy", metadata={"help": "Tokens the heads learn: policy, completion, observation or all."}
    )
    mtp_detach: bool = field(
        default=True, metadata={"help": "The heads' loss moves the heads alone. False: as the model's switches say."}
    )
    mtp_max_grad_norm: float | None = field(
        default=None, metadata={"help": "Bound on the heads' gradients. None: max_grad_norm."}
    )
    mtp_cosine_steps: int = field(
        default=10, metadata={"help": "Steps between two looks at the cosine of the losses' gradients; 0: never."}
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
            # The world heads take no part in a loss; DistributedDataParallel would wait for their gradients.
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
        objective = self.build_objective()
        if objective.coef.unit == "tokens" and self.include_num_input_tokens_seen in ("no", False):
            self.include_num_input_tokens_seen = "non_padding"  # the schedule counts them, and so must a checkpoint
        check_choice("mtp_tokens", self.mtp_tokens, TOKEN_SETS)
        if self.mtp_tokens not in self._token_sets:
            raise ValueError(
                f"mtp_tokens={self.mtp_tokens!r}: the batches of {type(self).__name__} do not say what a world or a "
                f"tool replied; use one of {', '.join(self._token_sets)}."
            )
        if self.mtp_detach and not objective.detach_teacher:
            raise ValueError(
                "mtp_detach=True keeps the heads' loss from the trunk and detach_teacher=False moves it as a teacher; "
                "set one of them the other way."
            )
        bound = self.mtp_max_grad_norm
        if bound is not None and not (0 < bound < math.inf and self.max_grad_norm > 0):
            raise ValueError(
                f"mtp_max_grad_norm={bound} must be positive, beside a positive max_grad_norm (got "
                f"{self.max_grad_norm}), without which Trainer clips nothing."
            )
        if isinstance(self.mtp_cosine_steps, bool) or self.mtp_cosine_steps < 0:
            raise ValueError(f"mtp_cosine_steps={self.mtp_cosine_steps!r} must be a number of steps, or 0 for never.")
        if self.label_smoothing_factor != 0:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor}: TRL then runs the fused forward, and the heads "
                "in it, without gradients; set it to 0."
            )
        for name, remedy in self._refused.items():
            if getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)!r} is not supported with MTP heads: {remedy}.")
