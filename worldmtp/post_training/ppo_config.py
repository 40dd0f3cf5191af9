"""``MTPPPOConfig``: what PPO adds to TRL's GRPOConfig, and what of GRPO it has no use for."""

import math
from dataclasses import MISSING, dataclass, field, fields
from typing import ClassVar, no_type_check

from trl import GRPOConfig

from worldmtp.choices import check_choice
from worldmtp.post_training.on_policy import OnPolicyConfigMixin

VALUE_LOSSES = ("two_hot", "squared")


@no_type_check
@dataclass
class MTPPPOConfig(OnPolicyConfigMixin, GRPOConfig):
    """TRL's GRPOConfig with PPO's options in the place of GRPO's, the heads' objective, and drafts.

    TRL's own names keep their meaning: ``epsilon`` clips the ratio, ``beta`` weighs the KL to the reference,
    ``entropy_coef`` the entropy, ``num_iterations`` are epochs. One completion a prompt is the default.

    Args:
        gamma: discount of a decision.
        gae_lambda: of GAE; the value's targets are the returns, lambda 1, as the project's agent has them.
        vf_coef: weight of the value's loss.
        value_loss: "two_hot" is the cross-entropy with the two bins around the return, as the agent has it; "squared"
            is (v - R)^2 / 2.
        value_clip: the value's loss has no gradient where the value has moved further than this from the old one, away
            from its clipped neighbour's error; None does not clip.
        detach_value: the value's loss moves the value head alone.
        bootstrap_truncated: a completion that was cut off goes on in value. Off where its end was paid a score.
        scale_advantages: divide by their root mean square over the sampled batch.
        min_advantage_scale: the least that they are divided by.

    Raises:
        ValueError: a value outside its range, or an option of GRPO that PPO has no use for.
    """

    _refused: ClassVar[dict[str, str]] = OnPolicyConfigMixin._refused | {
        "cast_lm_head_to_fp32": "TRL looks for it under another name than the trunk's; load float32 weights",
        "use_adaptive_entropy": "set entropy_coef",
        "mask_truncated_completions": "PPO learns from cut completions; bootstrap_truncated says how they go on",
    }
    _unused: ClassVar[tuple[str, ...]] = (
        "loss_type",
        "importance_sampling_level",
        "multi_objective_aggregation",
        "scale_rewards",
        "epsilon_high",
        "delta",
        "top_entropy_quantile",
        "off_policy_mask_threshold",
        "use_bias_correction_kl",
    )
    """GRPO's own, which must keep TRL's defaults."""

    num_generations: int = field(default=1, metadata={"help": "Completions of a prompt; PPO needs no group."})
    disable_dropout: bool = field(default=True, metadata={"help": "With dropout, the ratio would not start at one."})
    gamma: float = field(default=1.0, metadata={"help": "Discount of a decision."})
    gae_lambda: float = field(default=0.95, metadata={"help": "Lambda of GAE."})
    vf_coef: float = field(default=0.5, metadata={"help": "Weight of the value's loss."})
    value_loss: str = field(default="two_hot", metadata={"help": "two_hot or squared."})
    value_clip: float | None = field(default=None, metadata={"help": "Clips the value's move; None: does not."})
    detach_value: bool = field(default=True, metadata={"help": "The value's loss moves the value head alone."})
    bootstrap_truncated: bool = field(default=False, metadata={"help": "Cut completions go on in value."})
    scale_advantages: bool = field(default=True, metadata={"help": "Divide by their root mean square."})
    min_advantage_scale: float = field(default=1e-6, metadata={"help": "The least they are divided by."})

    def __post_init__(self) -> None:
        if self.num_generations != 1:
            super().__post_init__()
            return
        # TRL refuses one completion a prompt, which has no group; it is shown a group that always divides its batch.
        self.num_generations_eval = self.num_generations_eval or 1
        self.num_generations = self.generation_batch_size or self.per_device_train_batch_size * (
            self.steps_per_generation or self.gradient_accumulation_steps
        )
        if self.num_generations < 2:
            raise ValueError(
                "a sampled batch of one completion on this process: nothing to scale its advantages by; raise "
                "per_device_train_batch_size or gradient_accumulation_steps."
            )
        try:
            super().__post_init__()
        finally:
            self.num_generations = 1

    def _check(self) -> None:
        super()._check()
        check_choice("value_loss", self.value_loss, VALUE_LOSSES)
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1].")
        for name in ("epsilon", "min_advantage_scale", *(["value_clip"] if self.value_clip is not None else [])):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be positive and finite.")
        for name in ("vf_coef", "entropy_coef", "beta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be finite and not negative; 0 turns it off.")
        defaults = {option.name: option.default for option in fields(self) if option.default is not MISSING}
        for name in self._unused:
            if name in defaults and getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is an option of GRPO that PPO has no use for; leave it out "
                    f"({defaults[name]!r})."
                )
