"""The trainer of a config: held to the run of the same config, and to one that is put together by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.random import stream_seed
from worldmtp.training import (
    AgentConfig,
    EnvConfig,
    EvalConfig,
    ModelConfig,
    SFTStageConfig,
    TrainConfig,
    fresh_trainer,
)
from worldmtp.training.make import make_env, make_model

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG = TrainConfig(
    env=EnvConfig("worldmtp/Reverse-v0", {"pool_size": 16}),
    model=ModelConfig(architecture="qwen3", config=SIZES | {"num_key_value_heads": 2, "head_dim": 8}),
    agent=AgentConfig(RolloutConfig(num_iterations=1, num_prompts=2, group_size=2), PPOConfig()),
    sft=SFTStageConfig(num_steps=0),
    imagination=ImaginationConfig(use="off"),
    eval=EvalConfig(num_prompts=4, num_imagined=1),
    seed=3,
)


def by_hand(config: TrainConfig) -> ImaginationTrainer:
    """Its parts, in the order and by the streams of the documentation."""
    env = make_env(config.env, 4)
    model = make_model(config.model, env, stream_seed(config.seed, "model"))
    env.dataset.choose_pools(config.seed, frozenset())
    parts = (config.agent.rollout, config.agent.ppo, config.world_model, config.imagination)
    return ImaginationTrainer(model, env, *parts, stream_seed(config.seed, "reinforcement"))


def test_it_is_the_trainer_that_one_would_put_together() -> None:
    fresh, expected = fresh_trainer(CONFIG), by_hand(CONFIG)
    assert fresh.trainer.model is fresh.model
    assert [example.prompt for example in fresh.prompts.held_out] == [
        example.prompt for example in make_env(CONFIG.env, 1).examples("heldout", 4, CONFIG.seed, "evaluation")
    ]
    for _ in range(2):
        assert torch.equal(fresh.trainer.step()[1].input_ids, expected.step()[1].input_ids)
    for weight, other in zip(fresh.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(weight, other)
    # Another seed is another model, and asks other prompts.
    other_seed = fresh_trainer(replace(CONFIG, seed=4))
    first, second = (one.model.trunk.get_input_embeddings().weight for one in (other_seed, fresh_trainer(CONFIG)))
    assert not torch.equal(first, second)
    assert other_seed.prompts.held_out != fresh.prompts.held_out


def test_further_rows_ask_from_the_pool_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    class Told(ImaginationTrainer):
        def __init__(self, *parts: Any) -> None:
            told.append(parts)
            super().__init__(*parts)

    monkeypatch.setattr("worldmtp.training.trainers.ImaginationTrainer", Told)
    fresh = fresh_trainer(CONFIG)
    (parts,) = told
    assert parts[:2] == (fresh.model, fresh.env)
    assert parts[2:6] == (CONFIG.agent.rollout, CONFIG.agent.ppo, CONFIG.world_model, CONFIG.imagination)
    more = parts[7](3)
    pools = [[one.prompt for one in env.dataset.pool("train").examples] for env in (more, fresh.env)]
    assert (more.num_envs, pools[0]) == (3, pools[1])
    assert pools[0] != [one.prompt for one in make_env(CONFIG.env, 1).dataset.pool("train").examples]


@pytest.mark.parametrize("sft", [SFTStageConfig(num_steps=5), SFTStageConfig(num_steps=0, load="runs/other/sft/model")])
def test_a_warm_start_is_not_left_out_in_silence(sft: SFTStageConfig) -> None:
    with pytest.raises(
        ValueError, match=rf"sft.num_steps={sft.num_steps} and sft.load={sft.load}: a fresh trainer has"
    ):
        fresh_trainer(replace(CONFIG, sft=sft))
