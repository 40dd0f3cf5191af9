"""Kahneman-Tversky optimisation with MTP heads: TRL's KTOTrainer, and heads that learn from desirable completions.

KTO passes its batch through the model three times, two of them without gradients: no head runs in those. The reference
is a frozen copy of the trunk, and heads are detached by default, both as in ``worldmtp.post_training.dpo``.
"""

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, no_type_check

from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from worldmtp.model.guards import TRAINS_HEADS
from worldmtp.post_training.config import MTPConfigMixin
from worldmtp.post_training.preference import PreferenceMixin
from worldmtp.post_training.token_sets import TokenChoice


@no_type_check
@dataclass
class MTPKTOConfig(MTPConfigMixin, KTOConfig):
    """TRL's KTOConfig with the heads' objective, and defaults that follow the machine (``MTPConfigMixin``)."""

    _token_sets: ClassVar[tuple[str, ...]] = ("policy", "completion", "all")
    _refused: ClassVar[dict[str, str]] = {
        "sync_ref_model": "TRL would mix the heads' weights into the reference's; leave it out",
    }


class MTPKTOTrainer(PreferenceMixin, KTOTrainer):
    """TRL's KTOTrainer for an ``MTPModel``; what it logs of the heads is ``MTPSFTTrainer``'s.

    Arguments and errors are those of ``MTPDPOTrainer``; ``train_dataset`` has rows of ``prompt``, ``completion`` and
    ``label``, or pairs of ``chosen`` and ``rejected``.
    """

    _tag_names = [*KTOTrainer._tag_names, TRAINS_HEADS]  # noqa: RUF012 # as TRL declares it
    trl_name = "KTOTrainer"
    config_class = MTPKTOConfig
    required_columns = (("completion", "label"), ("chosen", "rejected"))

    def add_heads(self, args: MTPConfigMixin) -> None:
        """Put the heads in, and warn where no completion is desirable."""
        if isinstance(self.train_dataset, Dataset) and not any(self.train_dataset["label"]):
            warnings.warn("no completion of train_dataset is desirable: the heads have nothing to learn.", stacklevel=3)
        super().add_heads(args)

    def _token_choice(self, batch: dict[str, Any]) -> TokenChoice:
        """Return the tokens of desirable completions."""
        return TokenChoice(self.args.mtp_tokens, rows=batch["label"].bool())

    def _compute_kl_logps(self, model: Any, batch: dict[str, Any]) -> Any:
        """Score mismatched completions without heads, in evaluation too: nobody learns from those."""
        with self.mtp_forward.paused():
            return super()._compute_kl_logps(model, batch)

    def _no_targets_hint(self) -> None:
        """Return None: TRL goes through desirable and undesirable rows in turn, so that some steps have no target."""
