"""Supervised fine-tuning with MTP heads: TRL's SFTTrainer, its data handling, its loss, and depths 2 .. K beside it.

One trunk forward per micro-batch. The depth and the detach switches are the model's config; lambda, the losses, their
weights and schedules are the training config's objective.

Left out: PEFT's own wrapper (it would freeze the heads; ``worldmtp.model.lora`` puts adapters into the trunk),
``compute_loss_func`` and label smoothing (TRL runs the fused forward without gradients for them), sequence parallelism.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, no_type_check

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import SFTConfig, SFTTrainer

from worldmtp.model import MTPModel
from worldmtp.model.guards import TRAINS_HEADS
from worldmtp.post_training.config import MTPConfigMixin
from worldmtp.post_training.guards import check_columns, check_has_target, named_sets
from worldmtp.post_training.mixin import MTPTrainerMixin

TEXT_COLUMNS = (("input_ids",), ("messages",), ("conversations",), ("prompt", "completion"))
"""From which TRL makes texts, beside ``dataset_text_field``."""


@no_type_check
@dataclass
class MTPSFTConfig(MTPConfigMixin, SFTConfig):
    """TRL's SFTConfig with the heads' objective, and defaults that follow the machine (``MTPConfigMixin``).

    Here the heads' loss moves the trunk too, as in DeepSeek-V3, unless ``mtp_detach`` or the model's switches say
    otherwise.
    """

    mtp_detach: bool = field(
        default=False, metadata={"help": "The heads' loss moves the heads alone. False: as the model's switches say."}
    )

    def _check(self) -> None:
        super()._check()
        if self.packing_strategy == "wrapped" and (self.packing or self.eval_packing):
            raise ValueError(
                "packing_strategy='wrapped' cuts documents without marking where they begin, so targets of depth 2 "
                "and beyond would come from the next document; use packing_strategy='bfd' or 'bfd_split'."
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
        train_dataset: as TRL takes it, like all not named here; ``build_demonstrations`` makes one of token ids.
        processing_class: the tokenizer.

    Raises:
        TypeError: the model is not an MTPModel, or the configuration not an MTPSFTConfig.
        ValueError: a dataset that is empty, lacks the columns of a text or has no label left, a tokenizer larger than
            the model's vocabulary, or an objective that reaches beyond the model's depths or that sharded training
            cannot follow.
        IncompatibleTRLError: the installed TRL is not one this was built for.
    """

    _tag_names = [*SFTTrainer._tag_names, TRAINS_HEADS]  # noqa: RUF012 # as TRL declares it
    trl_name = "SFTTrainer"
    config_class = MTPSFTConfig

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
        self.check_arguments(model, args, processing_class, train_dataset, eval_dataset)
        if data_collator is None:  # another one may read other columns
            columns = (*TEXT_COLUMNS, (args.dataset_text_field,))
            for name, dataset in [("train_dataset", train_dataset), *named_sets("eval_dataset", eval_dataset)]:
                check_columns(name, dataset, columns)
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
        for name, dataset in [("train_dataset", self.train_dataset), *named_sets("eval_dataset", self.eval_dataset)]:
            check_has_target(name, dataset, self._remove_unused_columns, self.data_collator, args.max_length)
        # Trainer asks the model's own forward and class name; the loss here is always TRL's, which shifts the labels
        # and divides by the targets of the whole accumulated batch.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = True
        self.add_heads(args)

    def _count_window(self, batches: list[Any]) -> Tensor | None:
        """Leave the count to TRL where it counts the same tokens."""
        return None if self.args.mtp_tokens == "policy" else super()._count_window(batches)

    def _normalised(self, total: Tensor, num_targets: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """Divide as TRL's SFT divides its own sum: by its denominator, undoing the mean over processes."""
        if self._window_targets is not None:
            return total / self._window_targets.clamp(min=1) * self.accelerator.num_processes
        if num_items_in_batch is None:
            return total / num_targets.clamp(min=1)
        mean = total / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)
        if self.args.average_tokens_across_devices:
            mean = mean * (self.accelerator.num_processes // self.get_tp_size())
        return mean
