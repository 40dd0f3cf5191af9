"""Supervised fine-tuning with MTP heads: TRL's SFTTrainer, its data handling, its loss, and depths 2 .. K beside it.

One trunk forward per micro-batch. The depth and the detach switches are the model's config; lambda, the losses, their
weights and schedules are the training config's objective. TRL's own defaults are a GPU's: bf16 autocast and gradient
checkpointing, on a CPU too, where both cost time. Here what the user did not set follows the machine.

Left out: PEFT's own wrapper (it would freeze the heads; ``worldmtp.model.lora`` puts adapters into the trunk),
``compute_loss_func`` and label smoothing (TRL runs the fused forward without gradients for them), sequence parallelism.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, no_type_check

import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import SFTConfig, SFTTrainer

from worldmtp.model import MTPModel
from worldmtp.model.guards import TRAINS_HEADS
from worldmtp.objective import MTPObjective
from worldmtp.post_training.compat import check_seams, check_trainer
from worldmtp.post_training.guards import (
    check_config,
    check_has_target,
    check_model,
    check_not_empty,
    check_vocabulary,
    named_sets,
    warn_of_half_precision,
)
from worldmtp.post_training.mixin import MTPTrainerMixin


# Run-time type checks (under pytest) would refuse every int given to one of TRL's floats, logging_steps=1 for one.
@no_type_check
@dataclass
class MTPSFTConfig(SFTConfig):
    """TRL's SFTConfig with the heads' objective, and defaults that follow the machine.

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


class MTPSFTTrainer(MTPTrainerMixin, SFTTrainer):
    """TRL's SFTTrainer for an ``MTPModel``.

    Logs, beside TRL's own metrics, ``mtp/coef`` and, for the depths k that ran, ``mtp/loss_depth_k``,
    ``mtp/top1_depth_k`` and, in evaluation or where a term compares logits, ``mtp/acceptance_depth_k`` (sum_v min(p, q)
    with the teacher's p: the trunk's, or in training that of its moving average where the objective has one), each a
    mean per target over all micro-batches since the last log. In evaluation ``eval_`` stands in front; with a dict of
    evaluation sets ``eval_<name>_``, as in TRL's ``eval_<name>_loss``.

    Weights are trained in the dtype that the model has, which is that of its checkpoint unless ``from_pretrained`` is
    told otherwise; half precision loses small steps, and a warning says so. Load with ``dtype=torch.float32`` and leave
    the computing to ``bf16=True``.

    A model with adapters (``worldmtp.model.lora``) has checkpoints of ``save_lora``: without the trunk's own weights.

    Args:
        model: made in memory or by ``MTPModel.from_pretrained``; never loaded by name here.
        args: the configuration.
        train_dataset: as TRL takes it; ``build_demonstrations`` makes one of token ids.
        processing_class: the tokenizer.
        eval_dataset: as TRL takes it.
        data_collator: None is TRL's.
        callbacks: passed through.
        optimizers: optimizer and schedule; None is the one of ``args``.

    Raises:
        TypeError: the model is not an MTPModel, or the configuration not an MTPSFTConfig.
        ValueError: a dataset that is empty or has no label left, a tokenizer larger than the model's vocabulary, or an
            objective that reaches beyond the model's depths or that sharded training cannot follow.
        IncompatibleTRLError: the installed TRL is not one this was built for.
    """

    _tag_names = [*SFTTrainer._tag_names, TRAINS_HEADS]  # noqa: RUF012 # as TRL declares it

    def __init__(
        self,
        model: MTPModel,
        args: MTPSFTConfig,
        *,
        train_dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase,
        eval_dataset: Any = None,
        data_collator: Any = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ) -> None:
        check_seams()
        check_model(model)
        check_config(args, MTPSFTConfig)
        check_vocabulary(model, processing_class)
        check_not_empty("train_dataset", train_dataset, "give it at least one example")
        for name, dataset in named_sets("eval_dataset", eval_dataset):
            check_not_empty(name, dataset, "give it at least one example, or leave it out")
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=None if callbacks is None else list(callbacks),
            optimizers=optimizers,
        )
        check_trainer(self)
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):  # these keep copies in float32
            warn_of_half_precision(model)
        for name, dataset in [("train_dataset", self.train_dataset), *named_sets("eval_dataset", self.eval_dataset)]:
            check_has_target(name, dataset, self._remove_unused_columns, self.data_collator, args.max_length)
        # Trainer asks the model's own forward and class name; the loss here is always TRL's, which shifts the labels
        # and divides by the targets of the whole accumulated batch.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = True
        self.add_heads(args.build_objective())
