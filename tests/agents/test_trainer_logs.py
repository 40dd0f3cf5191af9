"""What an iteration logs, from the rollout and from its parts."""

from collections.abc import Callable

import pytest

from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.envs import TextGenVectorEnv
from worldmtp.model import MTPModel

MakeEnv = Callable[[int], TextGenVectorEnv]
MakeModel = Callable[..., MTPModel]
ROLLOUT = RolloutConfig(num_iterations=3, num_prompts=4, group_size=4)
WORLD = WorldModelConfig(num_updates=2, batch_size_episodes=8)


def make_trainer(env: MakeEnv, model: MTPModel, use: str, ppo: PPOConfig) -> ImaginationTrainer:
    imagination = ImaginationConfig(use=use, horizon=2, num_rollouts=2, min_batches=1, max_live=3)
    return ImaginationTrainer(model, env(16), ROLLOUT, ppo, WORLD, imagination, 0)


def test_the_learning_rate_logged_is_the_one_used(text_env: MakeEnv, tiny_model: MakeModel) -> None:
    """Warm-up over 8 updates to 8e-4, four an iteration: 1, 2, 3, 4 e-4, then 5 .. 8 e-4; the mean of each."""
    trainer = make_trainer(text_env, tiny_model(), "off", ppo=PPOConfig(learning_rate=8e-4, warmup_updates=8))
    assert trainer.step()[0]["losses/learning_rate"] == pytest.approx(2.5e-4)
    assert trainer.step()[0]["losses/learning_rate"] == pytest.approx(6.5e-4)
    assert trainer.step()[0]["losses/learning_rate"] == pytest.approx(8e-4)


def test_what_an_iteration_logs_by_hand(text_env: MakeEnv, tiny_model: MakeModel) -> None:
    """Spreads, sums and rates, from the rollout and from their parts."""
    ppo = PPOConfig(learning_rate=1e-3, ent_coef=0.5, num_minibatches=1, num_epochs=1)
    metrics, rollout = make_trainer(text_env, tiny_model(), "baseline", ppo=ppo).step()
    paid = rollout.rewards.sum(1)
    assert metrics["rollout/return_std"] == pytest.approx(float((paid - paid.mean()).square().mean().sqrt()))
    same = [len(set(paid[rollout.group == g].tolist())) == 1 for g in rollout.group.unique()]
    assert metrics["rollout/same_return_group_fraction"] == sum(same) / 4
    parts = {"policy": 1.0, "value": 0.5, "kl_reference": 0.02, "entropy": -0.5}
    assert metrics["losses/total"] == pytest.approx(sum(c * metrics[f"losses/{name}"] for name, c in parts.items()))
    assert metrics["losses/advantage_std"] > 0
    tokens = rollout.num_tokens
    # Two rollouts of two tokens at each state, and one of two at each of 16 roots.
    assert metrics["imagination/imagined_to_real_ratio"] == pytest.approx((tokens * 4 + 32) / tokens)
    assert metrics["time/tokens_per_second"] == pytest.approx(tokens / metrics["time/rollout_seconds"])
    assert 0 <= metrics["time/scoring_seconds"] <= metrics["time/env_seconds"]
    assert metrics["world_model/grad_norm"] > 0
