"""Direct preference optimisation with MTP heads: TRL's DPOTrainer, and heads that learn from the chosen half of a pair.

The rejected half is never a target: heads would learn to draft what the policy unlearns. Heads are detached by default:
their cross-entropy on the chosen half would be supervised fine-tuning of the trunk beside DPO.

The reference is a frozen copy of the trunk, not the file that the model was loaded from.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, no_type_check

import torch
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from worldmtp.model.guards import TRAINS_HEADS
from worldmtp.post_training.config import MTPConfigMixin
from worldmtp.post_training.preference import PreferenceMixin
from worldmtp.post_training.token_sets import TokenChoice


@no_type_check
@dataclass
class MTPDPOConfig(MTPConfigMixin, DPOConfig):
    """TRL's DPOConfig with the heads' objective, and defaults that follow the machine (``MTPConfigMixin``)."""

    _token_sets: ClassVar[tuple[str, ...]] = ("policy", "completion", "all")
    _refused: ClassVar[dict[str, str]] = {
        "sync_ref_model": "TRL would mix the heads' weights into the reference's; leave it out",
        "padding_free": "TRL itself falls back to padding; leave it out",
    }


class MTPDPOTrainer(PreferenceMixin, DPOTrainer):
    """TRL's DPOTrainer for an ``MTPModel``; what it logs of the heads is ``MTPSFTTrainer``'s.

    Args:
        model: made in memory or by ``MTPModel.from_pretrained``.
        args: the configuration.
        train_dataset: rows of ``chosen`` and ``rejected``, with their ``prompt`` or with it inside.
        processing_class: the tokenizer.
        ref_model: a causal LM; None is a frozen copy of the trunk. All that is not named here is as TRL takes it.

    Raises:
        TypeError: the model is not an MTPModel, or the configuration not an MTPDPOConfig.
        ValueError: a dataset that is empty or lacks a column, or whose pairs prefer nothing; or an objective beyond
            the model's depths.
        IncompatibleTRLError: the installed TRL is not one this was built for.
    """

    _tag_names = [*DPOTrainer._tag_names, TRAINS_HEADS]  # noqa: RUF012 # as TRL declares it
    trl_name = "DPOTrainer"
    config_class = MTPDPOConfig
    required_columns: ClassVar[tuple[tuple[str, ...], ...]] = (("chosen", "rejected"),)

    def _token_choice(self, batch: dict[str, Any]) -> TokenChoice:
        """Return the tokens of the chosen half, which is the first."""
        rows = chosen_half(batch["input_ids"])
        return TokenChoice(self.args.mtp_tokens, rows=rows)


def chosen_half(input_ids: Tensor) -> Tensor:
    """Return which rows of a batch of pairs were chosen: TRL's collator puts them before the rejected ones.

    Raises:
        ValueError: the rows are not in pairs.
    """
    num_rows = len(input_ids)
    if num_rows % 2:
        raise ValueError(f"a batch of pairs has {num_rows} rows, expected an even number: chosen, then rejected.")
    return torch.arange(num_rows, device=input_ids.device) < num_rows // 2
