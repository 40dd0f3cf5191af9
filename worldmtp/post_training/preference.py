"""What preference trainers share: pairs or labelled completions, a frozen reference, completions as labels."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from worldmtp.model import IGNORE_INDEX, MTPModel
from worldmtp.post_training.config import MTPConfigMixin
from worldmtp.post_training.guards import check_pairs
from worldmtp.post_training.mixin import MTPTrainerMixin
from worldmtp.post_training.reference import frozen_reference


class PreferenceMixin(MTPTrainerMixin):
    """The constructor and the labels of a preference trainer; its arguments are told by the trainers."""

    def __init__(
        self,
        model: MTPModel,
        args: MTPConfigMixin,
        *,
        train_dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase,
        ref_model: PreTrainedModel | None = None,
        eval_dataset: Any = None,
        data_collator: Any = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ) -> None:
        self.check_arguments(model, args, processing_class, train_dataset, eval_dataset)
        check_pairs("train_dataset", train_dataset)
        passed: dict[str, Any] = {"model": model, "args": args, "data_collator": data_collator}
        if ref_model is None and not passed["args"].precompute_ref_log_probs:  # which the untrained model does itself
            ref_model = frozen_reference(model)
        passed["ref_model"] = ref_model
        passed |= {"train_dataset": train_dataset, "eval_dataset": eval_dataset, "processing_class": processing_class}
        passed |= {"callbacks": None if callbacks is None else list(callbacks), "optimizers": optimizers}
        super().__init__(**passed)
        self.add_heads(args)

    def _texts(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch with the labels that TRL makes of the completions."""
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORE_INDEX)
        return super()._texts(batch) | {"labels": labels}
