"""REINFORCE leave-one-out with MTP heads: TRL's RLOOTrainer, sampled with the heads' drafts.

RLOO's ratio and advantage are a sequence's. Advantages of tokens, which other trainers take, would be broadcast over
rows without a word where a batch has as many rows as tokens; they are refused.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, no_type_check

from trl import RLOOConfig, RLOOTrainer

from worldmtp.model.guards import TRAINS_HEADS
from worldmtp.post_training.on_policy import OnPolicyConfigMixin, OnPolicyMixin
from worldmtp.post_training.token_sets import TokenChoice


@no_type_check
@dataclass
class MTPRLOOConfig(OnPolicyConfigMixin, RLOOConfig):
    """TRL's RLOOConfig with the heads' objective, drafts, and defaults that follow the machine."""

    _token_sets: ClassVar[tuple[str, ...]] = ("policy", "completion", "all")


class MTPRLOOTrainer(OnPolicyMixin, RLOOTrainer):
    """TRL's RLOOTrainer for an ``MTPModel``.

    What it logs, takes and raises is ``MTPGRPOTrainer``'s, but for ``rollout_func``, ``tools`` and
    ``environment_factory``, which TRL's RLOOTrainer does not take.
    """

    _tag_names = [*RLOOTrainer._tag_names, TRAINS_HEADS]  # noqa: RUF012 # as TRL declares it
    trl_name = "RLOOTrainer"
    config_class = MTPRLOOConfig

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
