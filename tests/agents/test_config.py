"""Configs refuse what cannot be, and say what was given."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (PPOConfig, {"learning_rate": 0.0}, "learning_rate=0.0 must be positive"),
        (PPOConfig, {"warmup_updates": -1}, "warmup_updates=-1 cannot be negative"),
        (PPOConfig, {"target_kl": 0.0}, "target_kl=0.0 must be positive and finite, or null for no stop"),
        (PPOConfig, {"adam_beta2": 1.0}, "adam_beta2=1.0 must be in"),
        (PPOConfig, {"gamma": 1.1}, r"gamma=1.1 must be in \[0, 1\]"),
        (PPOConfig, {"gae_lambda": -0.1}, r"gae_lambda=-0.1 must be in \[0, 1\]"),
        (PPOConfig, {"clip_coef": 0.0}, "clip_coef=0.0 must be positive"),
        (PPOConfig, {"max_grad_norm": 0.0}, "max_grad_norm=0.0 must be positive"),
        (PPOConfig, {"observation_coef": -0.1}, "observation_coef=-0.1 must be finite and not negative"),
        (PPOConfig, {"num_epochs": 0}, "num_epochs=0 must be at least 1"),
        (PPOConfig, {"num_minibatches": 0}, "num_minibatches=0 must be at least 1"),
        (PPOConfig, {"micro_batch_size": 0}, "micro_batch_size=0 must be at least 1, or null for whole minibatches"),
        (PPOConfig, {"advantage": "vine"}, "advantage='vine' is unknown; choose 'gae' or 'group'"),
        (RolloutConfig, {"num_iterations": -1}, "num_iterations=-1 cannot be negative"),
        (RolloutConfig, {"num_iterations": 1, "num_prompts": 0}, "num_prompts=0 must be at least 1"),
        (RolloutConfig, {"num_iterations": 1, "group_size": 0}, "group_size=0 must be at least 1"),
        (RolloutConfig, {"num_iterations": 1, "num_prompts": 1, "group_size": 1}, "has nothing to be compared with"),
        (RolloutConfig, {"num_iterations": 1, "temperature": 0.0}, "temperature=0.0 must be positive"),
        (WorldModelConfig, {"learning_rate": -1.0}, "learning_rate=-1.0 must be positive"),
        (WorldModelConfig, {"num_updates": -1}, "num_updates=-1 cannot be negative"),
        (WorldModelConfig, {"replay_iterations": 0}, "replay_iterations=0 must be at least 1"),
        (WorldModelConfig, {"batch_size_episodes": 0}, "batch_size_episodes=0 must be positive"),
        (WorldModelConfig, {"max_grad_norm": -1.0}, "max_grad_norm=-1.0 must be positive"),
        (ImaginationConfig, {"use": "dream"}, "use='dream' is unknown; choose 'off', 'counterfactual', 'baseline'"),
        (ImaginationConfig, {"horizon": 0}, "horizon=0 must be at least 1"),
        (ImaginationConfig, {"max_live": 0}, "max_live=0 must be at least 1"),
        (
            ImaginationConfig,
            {"max_live": 1, "tail": False},
            "max_live=1 with tail=False must be at least 2: one token has no alternative",
        ),
        (ImaginationConfig, {"min_probability": 1.0}, r"min_probability=1.0 must be in \[0, 1\)"),
        (ImaginationConfig, {"max_rung": 3}, "max_rung=3 must be 0, 1 or 2"),
        (ImaginationConfig, {"critic_replay_iterations": 0}, "critic_replay_iterations=0 must be at least 1"),
        (ImaginationConfig, {"critic_hidden_size": 0}, "critic_hidden_size=0 must be at least 1"),
        (ImaginationConfig, {"critic_learning_rate": 0.0}, "critic_learning_rate=0.0 must be positive"),
        (ImaginationConfig, {"critic_updates": -1}, "critic_updates=-1 cannot be negative"),
        (ImaginationConfig, {"min_batches": -1}, "min_batches=-1 cannot be negative"),
        (ImaginationConfig, {"num_rollouts": 0}, "num_rollouts=0 must be at least 1"),
        (ImaginationConfig, {"slope_decay": 1.0}, r"slope_decay=1.0 must be in \(0, 1\)"),
        (ImaginationConfig, {"chunk_states": 0}, "chunk_states=0 must be positive"),
    ],
)
def test_impossible_values_are_refused(config: type[Any], values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**values)


def test_the_ends_of_the_ranges_are_allowed() -> None:
    assert PPOConfig(gamma=0.0, gae_lambda=1.0).gamma == 0.0
    assert RolloutConfig(num_iterations=0, num_prompts=1, group_size=2).group_size == 2
    assert WorldModelConfig(num_updates=0).num_updates == 0
    assert ImaginationConfig(min_probability=0.0, max_rung=0, horizon=1, max_live=1).max_rung == 0


@pytest.mark.parametrize("config", [PPOConfig(), RolloutConfig(num_iterations=1), ImaginationConfig()])
def test_nobody_mutates_a_config(config: Any) -> None:
    name = next(iter(config.__dataclass_fields__))
    with pytest.raises(FrozenInstanceError):
        setattr(config, name, getattr(config, name))


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("config", "name"),
    [
        *((PPOConfig, name) for name in ("vf_coef", "ent_coef", "kl_coef")),
        *((WorldModelConfig, name) for name in ("ce_coef", "reward_coef", "continuation_coef", "value_coef")),
    ],
)
def test_coefficients_are_finite_and_not_negative(config: Any, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value} must be finite and not negative; 0 turns the term off"):
        config(**{name: value})


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_rates_and_temperatures_are_positive_and_finite(value: float) -> None:
    for config, name in (
        (PPOConfig, "learning_rate"),
        (WorldModelConfig, "learning_rate"),
        (ImaginationConfig, "critic_learning_rate"),
        (lambda **given: RolloutConfig(num_iterations=1, **given), "temperature"),
    ):
        with pytest.raises(ValueError, match=rf"{name}={value} must be positive and finite"):
            config(**{name: value})


def test_what_compares_whole_episodes_takes_no_discount() -> None:
    with pytest.raises(ValueError, match=r"gamma=0\.9 with advantage='group': it compares whole episodes"):
        PPOConfig(advantage="group", gamma=0.9)
    with pytest.raises(ValueError, match="bootstrap_truncated=True with advantage='group'"):
        PPOConfig(advantage="group", bootstrap_truncated=True)
    with pytest.raises(ValueError, match=r"gamma=0\.9 with imagination=counterfactual.*set agent\.ppo\.gamma=1\.$"):
        PPOConfig(gamma=0.9).check_whole_episodes("imagination=counterfactual")
