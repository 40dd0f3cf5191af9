"""What imagination makes of the gradient's norm: worked by hand, and on the plans of an estimator."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from worldmtp.agents.advantages import PlainAdvantages
from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.imagination.counterfactual import control_plan
from worldmtp.agents.ppo import AdvantagePlan, PPOAgent
from worldmtp.agents.rollout import Rollout
from worldmtp.agents.tail import TAIL
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.envs import TextGenVectorEnv
from worldmtp.model import MTPModel

MakeRollout = Callable[..., Rollout]
MakeModel = Callable[..., MTPModel]
MakeEnv = Callable[[int], TextGenVectorEnv]
UNIFORM = torch.tensor(1 / 7, dtype=torch.float64).log()


def uniform_agent(tiny_model: MakeModel, **ppo: Any) -> PPOAgent:
    """A policy over 7 tokens whose logits are the parameters themselves, all zero."""
    model = tiny_model().double()
    model.trunk.register_parameter("theta", nn.Parameter(torch.zeros(7, dtype=torch.float64)))
    model.logits_of = lambda states: model.trunk.theta.expand(*states.shape[:-1], 7)  # type: ignore[method-assign]
    return PPOAgent(model, PPOConfig(**ppo), temperature=1.0)


def one_decision(make: MakeRollout, copies: int = 1) -> Rollout:
    row = {"prompt": [2], "actions": [3], "rewards": [1.0], "logprobs": [float(UNIFORM)], "end": "terminated"}
    rollout = make([row] * copies, steps=1, length=2)
    return Rollout(**vars(rollout) | {"logprobs": UNIFORM.expand(copies, 1)})


def plan_of(eta: float, copies: int = 1) -> AdvantagePlan:
    """A critic that knows that token 3 alone is paid: A = 6/7 for it, and -1/7 for token 4 and for the tail of five."""
    critic = torch.tensor([6 / 7, -1 / 7, -1 / 7], dtype=torch.float64)
    old = torch.stack([UNIFORM, UNIFORM, UNIFORM + torch.tensor(5.0, dtype=torch.float64).log()])
    return AdvantagePlan(
        advantages=torch.full((copies, 1), (1 - eta) * 6 / 7, dtype=torch.float64),
        value_targets=torch.ones((copies, 1), dtype=torch.float64),
        live_ids=torch.tensor([3, 4, TAIL]).expand(copies, 1, 3),
        live_logprobs=old.expand(copies, 1, 3),
        live_advantages=(eta * critic).expand(copies, 1, 3),
    )


@pytest.mark.parametrize("micro_batch_size", [None, 1, 2])
@pytest.mark.parametrize(("eta", "norm"), [(0.0, 216 / 343), (0.5, 6 / 28), (1.0, 6 / 343)])
def test_the_norm_by_hand(
    eta: float, norm: float, micro_batch_size: int | None, hand_rollout: MakeRollout, tiny_model: MakeModel
) -> None:
    """With u = e_3 - 1/7, |u|^2 = (36 + 6) / 49 = 6/7, the sampled term is (1 - eta) 6/7 u.

    The all-action term is sum_c A_c grad pi(c) = 1/7 (6/7 e_3 - 1/7 (all others)) = u / 7, as the A of all tokens sum
    to 0. Together (6/7 - eta 5/7) u: squared norms 36/49 6/7 = 216/343, 1/4 6/7 = 6/28 and 1/49 6/7 = 6/343.
    Episodes that are copies of one another have its gradient for their mean.
    """
    agent = uniform_agent(tiny_model, micro_batch_size=micro_batch_size)
    rollout, plan = one_decision(hand_rollout, copies=3), plan_of(eta, copies=3)
    assert agent.squared_gradient_norm(rollout, plan) == pytest.approx(norm, rel=1e-12)
    assert agent.squared_gradient_norm(rollout, control_plan(plan, rollout)) == pytest.approx(216 / 343, rel=1e-12)


def test_it_takes_no_step_and_leaves_no_gradient(hand_rollout: MakeRollout, tiny_model: MakeModel) -> None:
    """Other losses of the update have no part in it: with them the norm would be another."""
    agent = uniform_agent(tiny_model, vf_coef=7.0, kl_coef=3.0, ent_coef=5.0)
    before = [weight.clone() for weight in agent.model.parameters()]
    norm = agent.squared_gradient_norm(one_decision(hand_rollout), plan_of(1.0))
    assert norm == pytest.approx(6 / 343, rel=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(before, agent.model.parameters(), strict=True))
    assert all(weight.grad is None for weight in agent.model.parameters())
    assert not agent.optimizer.state


def trainer_of(env: TextGenVectorEnv, model: MTPModel, tail: bool = True, every: int = 0) -> ImaginationTrainer:
    imagination = ImaginationConfig(
        horizon=2, min_batches=1, max_live=3, tail=tail, gradient_norm_every=every, critic_learning_rate=0.05
    )
    rollout = RolloutConfig(num_iterations=4, num_prompts=4, group_size=4)
    world = WorldModelConfig(num_updates=1, batch_size_episodes=8)
    return ImaginationTrainer(model, env, rollout, PPOConfig(advantage="group"), world, imagination, seed=0)


@pytest.mark.parametrize("tail", [True, False])
def test_the_control_is_the_group_baseline(tail: bool, text_env: MakeEnv, tiny_model: MakeModel) -> None:
    """What the estimator plans, given back, is what it would plan with a shut gate; kappa too learns batch by batch."""
    trainer, plain, opened = (
        trainer_of(text_env(16), tiny_model(), tail),
        PlainAdvantages(PPOConfig(advantage="group")),
        0,
    )
    read = trainer._read

    def compare(rollout: Rollout) -> Any:
        nonlocal opened
        stats, plan, metrics = read(rollout)
        expected, _ = plain.estimate(rollout, stats)
        control = control_plan(plan, rollout)
        assert torch.allclose(control.advantages, expected.advantages, atol=1e-6)
        assert not control.live_advantages.any()
        opened += bool(plan.live_advantages.any())
        return stats, plan, metrics

    trainer._read = compare  # type: ignore[method-assign]
    for _ in range(6):
        trainer.step()
    assert opened >= 1


def test_measuring_changes_nothing_else(text_env: MakeEnv, tiny_model: MakeModel) -> None:
    """Every second iteration of four; with a shut gate, as in the first, the ratio is 1."""
    name = "imagination/gradient_norm_ratio"
    runs = [
        [trainer.step()[0] for _ in range(4)]
        for trainer in (trainer_of(text_env(16), tiny_model(), every=n) for n in (0, 2))
    ]
    assert not any(name in metrics for metrics in runs[0])
    assert [name in metrics for metrics in runs[1]] == [True, False, True, False]
    assert runs[1][0][name] == 1.0
    for without, measured in zip(*runs, strict=True):
        assert {tag: value for tag, value in measured.items() if tag != name and not tag.startswith("time/")} == {
            tag: value for tag, value in without.items() if not tag.startswith("time/")
        }
