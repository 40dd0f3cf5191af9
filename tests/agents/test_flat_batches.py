"""An imagined batch whose returns are all equal teaches nothing: the policy is what it was."""

from typing import Any

import pytest
import torch

from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.episodes_config import EpisodesConfig
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.envs import CharTokenizer, TextGenVectorEnv
from worldmtp.envs.worlds.task import WorldTask


class Toll:
    """Pays 1 at the end, which "a" brings at once and anything else after three turns."""

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        self._turn = 0
        return "ab"[seed % 2] + "=", {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._turn += 1
        ends = text == "a" or self._turn == 3
        return "=", float(ends), ends, False, {}


def env(num_envs: int) -> TextGenVectorEnv:
    return TextGenVectorEnv(
        num_envs,
        task=WorldTask(Toll, num_seeds=40),
        tokenizer=CharTokenizer("abcd="),
        max_prompt=2,
        max_new=9,
        max_turn=1,
        pool_size=8,
    )


def imagined_updates(
    model: Any, gamma: float, lowest: float | None = None, **fields: Any
) -> tuple[dict[str, float], bool]:
    """Imagine in the true world after a real batch; the metrics, and whether the policy's weights moved.

    All real returns are 1. With ``lowest`` another one is made known.
    """
    episodes = EpisodesConfig(
        num_batches=1, batch_size=64, exploring_batch_size=64, num_epochs=2, waits_for_reward=False, **fields
    )
    trainer = ImaginationTrainer(
        model,
        env(16),
        RolloutConfig(4, 16, 1),
        PPOConfig(learning_rate=1e-2, kl_coef=0.0, ent_coef=0.1, gamma=gamma),
        WorldModelConfig(backend="oracle"),
        ImaginationConfig(use="episodes", episodes=episodes),
        0,
        env,
    )
    trainer.step()  # Adam has momentum, which would move weights even where a gradient is zero
    assert trainer.episodes is not None
    if lowest is not None:
        trainer.episodes._heard.seen.lowest = lowest
    before = torch.nn.utils.parameters_to_vector(model.trunk.parameters()).detach().clone()
    metrics = trainer.episodes.run(torch.Generator().manual_seed(0), 1.0)
    return metrics, not torch.equal(torch.nn.utils.parameters_to_vector(model.trunk.parameters()), before)


@pytest.mark.parametrize(
    ("gamma", "least_gap", "is_trained"),
    [
        pytest.param(1.0, 0.0, False, id="all returns are 1"),
        pytest.param(0.9, 0.0, True, id="one turn is worth 1 and three .81"),
        pytest.param(0.9, 0.18, True, id="which is more than .18 of the range"),
        pytest.param(0.9, 0.2, False, id="and less than .2 of it"),
    ],
)
def test_equal_returns_leave_the_policy_alone(
    gamma: float, least_gap: float, is_trained: bool, tiny_model: Any
) -> None:
    """The batch is trained on or left out, and counted; what it promises is told in either case."""
    model = tiny_model()
    metrics, moved = imagined_updates(model, gamma, least_gap=least_gap)
    assert moved == is_trained
    trained, flat = (metrics[f"imagination/batches_{name}"] for name in ("trained", "flat"))
    assert (trained, flat) == ((1, 0) if is_trained else (0, 1))
    assert metrics["imagination/return_promised"] == 1


@pytest.mark.parametrize(
    ("lowest", "unlearns", "is_trained"),
    [
        pytest.param(0.5, True, False, id="all are as good as the best"),
        pytest.param(None, True, False, id="nothing else is known"),
        pytest.param(0.99, False, False, id="it is off"),
        pytest.param(0.99, True, True, id="all are as bad as the worst, within the least gap"),
    ],
)
def test_a_way_that_ends_as_badly_as_any_is_unlearnt(
    lowest: float | None, unlearns: bool, is_trained: bool, tiny_model: Any
) -> None:
    """What is followed is the entropy at its higher weight, and no advantage, which would be the critic's error."""
    model = tiny_model()
    metrics, moved = imagined_updates(model, 1.0, lowest, least_gap=0.02, unlearns_lost_ways=unlearns)
    assert (moved, metrics["imagination/batches_flat"]) == (is_trained, 1)
    assert metrics["imagination/batches_trained"] == is_trained
    if is_trained:
        assert metrics["imagination/losses/policy"] == 0
