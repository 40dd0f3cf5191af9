"""REINFORCE leave-one-out with MTP heads: TRL's RLOOTrainer, sampled with the heads' drafts.

RLOO's ratio and advantage are a sequence's. Advantages of tokens, which other trainers take, would be broadcast over
rows without a word where a batch has as many rows as tokens; they are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, no_type_check

import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import RLOOConfig, RLOOTrainer

from worldmtp.model import MTPModel
from worldmtp.model.guards import TRAINS_HEADS
from worldmtp.post_training.on_policy import OnPolicyConfigMixin, OnPolicyMixin, without_reference
from worldmtp.post_training.token_sets import TokenChoice


@no_type_check
@dataclass
class MTPRLOOConfig(OnPolicyConfigMixin, RLOOConfig):
    """TRL's RLOOConfig with the heads' objective, drafts, and defaults that follow the machine."""

    _token_sets: ClassVar[tuple[str, ...]] = ("policy", "completion", "all")


class MTPRLOOTrainer(OnPolicyMixin, RLOOTrainer):
    """TRL's RLOOTrainer for an ``MTPModel``.

    It logs what ``MTPSFTTrainer`` logs of the heads and, of the sampling, ``mtp/tokens_per_forward`` and
    ``mtp/accepted_depth_k``, the share of drafts whose tokens up to depth k were accepted.

    Args:
        model: made in memory or by ``MTPModel.from_pretrained``; a copy of its trunk is the reference of ``beta``.
        reward_funcs: as TRL takes them.
        args: the configuration.
        train_dataset: rows with a ``prompt``.
        processing_class: the tokenizer.
        eval_dataset: as TRL takes it.
        reward_processing_classes: passed through.
        callbacks: passed through.
        optimizers: optimizer and schedule; None is the one of ``args``.

    Raises:
        TypeError: the model is not an MTPModel, or the configuration not an MTPRLOOConfig.
        ValueError: a dataset that is empty or lacks a column, or an objective beyond the model's depths.
        IncompatibleTRLError: the installed TRL is not one this was built for.
    """

    _tag_names = [*RLOOTrainer._tag_names, TRAINS_HEADS]  # noqa: RUF012 # as TRL declares it
    trl_name = "RLOOTrainer"
    config_class = MTPRLOOConfig

    def __init__(
        self,
        model: MTPModel,
        reward_funcs: Any,
        args: MTPRLOOConfig,
        *,
        train_dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase,
        eval_dataset: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ) -> None:
        self.check_arguments(model, args, processing_class, train_dataset, eval_dataset)
        with without_reference(args):
            super().__init__(
                model=model,
                reward_funcs=reward_funcs,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                reward_processing_classes=reward_processing_classes,
                callbacks=None if callbacks is None else list(callbacks),
                optimizers=optimizers,
            )
        self.add_reference()
        self.add_heads(args)

    def _token_choice(self, batch: dict[str, Any]) -> TokenChoice:
        """Return the sampled tokens; the batch's advantages must be those of rows.

        Raises:
            ValueError: they are those of tokens.
        """
        shape = tuple(batch["advantages"].shape)
        if len(shape) != 1:
            raise ValueError(
                f"advantages have the shape {shape}, expected one for each of {len(batch['completion_ids'])} rows: "
                "RLOO has one for a whole completion; use GRPO or PPO for those of tokens."
            )
        return super()._token_choice(batch)
