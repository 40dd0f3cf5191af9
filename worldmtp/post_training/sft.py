"""Supervised fine-tuning with MTP heads: TRL's SFTTrainer, its data handling, its loss, and depths 2 .. K beside it.

One trunk forward per micro-batch. The depth, the detach switches and the coefficient's default are the model's config;
the losses, their weights and schedules are the training config's objective. Left out: PEFT's own wrapper (it would
freeze the heads; ``worldmtp.model.lora`` puts adapters into the trunk), ``compute_loss_func`` and label smoothing
(TRL runs the fused forward without gradients for them), sequence parallelism.
"""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import SFTTrainer

from worldmtp.model import MTPModel
from worldmtp.model.ema import EMATrunk
from worldmtp.model.guards import TRAINS_HEADS
from worldmtp.objective.plan import window_depths
from worldmtp.post_training.checks import (
    check_config,
    check_has_target,
    check_model,
    check_not_empty,
    check_vocabulary,
    named_sets,
    warn_of_half_precision,
)
from worldmtp.post_training.compat import check_seams, check_trainer
from worldmtp.post_training.depth_means import DepthMeans
from worldmtp.post_training.forward import add_mtp_forward
from worldmtp.post_training.mixin import EMACallback, MTPTrainerMixin
from worldmtp.post_training.sft_config import MTPSFTConfig


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
        objective = args.build_objective()
        window_depths(objective.window, model.config.depth)  # refuses here, not at the first step
        if objective.needs_ema:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError(
                    "latent_target='ema' averages whole parameters, which sharded training has on no process; use "
                    "latent_target='trunk'."
                )
            self.mtp_ema = EMATrunk(model.base_model, objective.ema_decay)
            self.add_callback(EMACallback(self.mtp_ema, model.base_model))
        self.mtp_means = {"train": DepthMeans(), "eval": DepthMeans()}
        self.mtp_forward = add_mtp_forward(model, objective)
