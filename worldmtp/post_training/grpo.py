"""Group-relative policy optimisation with MTP heads: TRL's GRPOTrainer, sampled with the heads' drafts.

The heads learn from what the policy wrote, what worlds and tools replied, or both (``mtp_tokens``). Completions that
were cut off and that TRL masks are no target.
"""

from dataclasses import dataclass
from typing import ClassVar, no_type_check

from trl import GRPOConfig, GRPOTrainer

from worldmtp.model.guards import TRAINS_HEADS
from worldmtp.post_training.on_policy import OnPolicyConfigMixin, OnPolicyMixin


@no_type_check
@dataclass
class MTPGRPOConfig(OnPolicyConfigMixin, GRPOConfig):
    """TRL's GRPOConfig with the heads' objective, drafts, and defaults that follow the machine."""

    _refused: ClassVar[dict[str, str]] = OnPolicyConfigMixin._refused | {
        "cast_lm_head_to_fp32": "TRL looks for it under another name than the trunk's; load float32 weights",
    }


class MTPGRPOTrainer(OnPolicyMixin, GRPOTrainer):
    """TRL's GRPOTrainer for an ``MTPModel``.

    It logs what ``MTPSFTTrainer`` logs of the heads and, of the sampling, ``mtp/tokens_per_forward`` and
    ``mtp/accepted_depth_k``, the share of drafts whose tokens up to depth k were accepted.

    Args:
        model: made in memory or by ``MTPModel.from_pretrained``; a copy of its trunk is the reference of ``beta``.
        reward_funcs: as TRL takes them, like all that is not named here.
        args: the configuration.
        train_dataset: rows with a ``prompt``.
        processing_class: the tokenizer.
        rollout_func: ``TextGenRollout`` is one.

    Raises:
        TypeError: the model is not an MTPModel, or the configuration not an MTPGRPOConfig; an argument is unknown.
        ValueError: a dataset that is empty or lacks a column, or an objective beyond the model's depths.
        IncompatibleTRLError: the installed TRL is not one this was built for.
    """

    _tag_names = [*GRPOTrainer._tag_names, TRAINS_HEADS]  # noqa: RUF012 # as TRL declares it
    trl_name = "GRPOTrainer"
    passed_through = ("rollout_func", "tools", "environment_factory")
    config_class = MTPGRPOConfig
    required_columns: ClassVar[tuple[tuple[str, ...], ...]] = (("prompt",), ("environment",))
