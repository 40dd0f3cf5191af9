"""The counterfactual estimator: its plan by hand, and a gate that only past batches open."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from worldmtp.agents.advantages import PlainAdvantages
from worldmtp.agents.config import ImaginationConfig, PPOConfig
from worldmtp.agents.imagination.counterfactual import CounterfactualAdvantages
from worldmtp.agents.imagination.imagined_returns import Acting
from worldmtp.agents.ppo import PolicyStats, likely_tokens
from worldmtp.agents.rollout import Rollout
from worldmtp.dynamics import acting_policy

MakeRollout = Callable[..., Rollout]
PROBS = (0.5, 0.3, 0.2)
"""Of tokens 4, 5 and 1, in every state."""


def make_rollout(make: MakeRollout) -> Rollout:
    """One group; the first answer is paid. Token 1 is the third likeliest."""
    rows = [
        {"prompt": [2, 3], "actions": [4, 5, 1], "rewards": [0, 0, 1.0], "end": "terminated", "group": 0},
        {"prompt": [2, 3], "actions": [5, 4, 4], "rewards": [0, 0, 0.0], "end": "truncated", "group": 0},
    ]
    return make(rows, steps=3, length=6)


def stats_of(rollout: Rollout) -> PolicyStats:
    probs = torch.zeros(7)
    probs[[4, 5, 1]] = torch.tensor(PROBS)
    return PolicyStats(torch.zeros((2, 4)), rollout.logprobs, likely_tokens(probs.log().expand(2, 3, 7), 3))


def make_estimator(world: Any, max_rung: int = 0, **ppo: Any) -> CounterfactualAdvantages:
    config = ImaginationConfig(max_rung=max_rung, horizon=2, max_live=3, min_batches=1, min_probability=0.05)
    settings = PPOConfig(advantage="group", scale_advantages=False, **ppo)
    return CounterfactualAdvantages(
        world, Acting(acting_policy(1.0), (0.0, 1.0)), 2, config, settings, torch.Generator().manual_seed(0)
    )


def test_with_a_shut_gate_it_is_plain_group_ppo(hand_rollout: MakeRollout, total_world: Any) -> None:
    rollout = make_rollout(hand_rollout)
    plan, metrics = make_estimator(total_world, max_rung=2).estimate(rollout, stats_of(rollout))
    plain, _ = PlainAdvantages(PPOConfig(advantage="group", scale_advantages=False)).estimate(
        rollout, stats_of(rollout)
    )
    assert torch.equal(plan.advantages, plain.advantages)
    assert torch.equal(plan.value_targets, plain.value_targets)
    assert not plan.live_advantages.any()
    assert metrics["imagination/gate_open"] == 0.0
    assert metrics["imagination/imagined_tokens"] == 6 * 3 * 2  # states, live tokens, steps
    assert metrics["imagination/num_live_mean"] == 3.0


def test_the_plan_by_hand(hand_rollout: MakeRollout, total_world: Any) -> None:
    """A critic Q = sigmoid(2 tanh(log pi)), slope 1/2; the residuals are 1 and -1 (each less the other).

    A token has one Q everywhere, so A = Q - V with V = .5 Q_4 + .3 Q_5 + .2 Q_1; both episodes add up three of them.
    """
    estimator, rollout = make_estimator(total_world), make_rollout(hand_rollout)
    (rung,) = estimator._rungs
    with torch.no_grad():
        for parameter in rung.critic.parameters():
            parameter.zero_()
        rung.critic.inner.weight[0, 0] = 1.0
        rung.critic.outer.weight[0, 0] = 2.0
    rung.measure(0.5, torch.ones(2), torch.full((2,), 0.5))
    plan, metrics = estimator.estimate(rollout, stats_of(rollout))
    q = [1 / (1 + math.exp(-2 * math.tanh(math.log(p)))) for p in PROBS]
    value = sum(p * said for p, said in zip(PROBS, q, strict=True))
    a_4, a_5, a_1 = (said - value for said in q)
    expected = torch.tensor([[1 - 0.5 * (a_4 + a_5 + a_1)], [-1 - 0.5 * (a_5 + 2 * a_4)]]).expand(2, 3)
    torch.testing.assert_close(plan.advantages, expected)
    torch.testing.assert_close(plan.live_advantages, 0.5 * torch.tensor([a_4, a_5, a_1]).expand(2, 3, 3))
    assert plan.live_ids[0, 0].tolist() == [4, 5, 1]
    assert (metrics["imagination/gate_open"], metrics["imagination/slope"]) == (1.0, 0.5)
    torch.testing.assert_close(plan.value_targets, torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))


def test_scaling_divides_both_terms_by_one_number(hand_rollout: MakeRollout, total_world: Any) -> None:
    """The residuals are 1 and -1 whatever the critic says, so their root mean square is one; doubled, it is two."""
    rollout = make_rollout(hand_rollout)
    rollout.rewards.mul_(2)
    plans = []
    for scales in (False, True):
        estimator = make_estimator(total_world)
        estimator._ppo = PPOConfig(scale_advantages=scales)
        estimator._rungs[0].measure(0.5, torch.ones(2), torch.full((2,), 0.5))
        plans.append(estimator.estimate(rollout, stats_of(rollout))[0])
    torch.testing.assert_close(plans[1].advantages, plans[0].advantages / 2)
    torch.testing.assert_close(plans[1].live_advantages, plans[0].live_advantages / 2)
    assert bool(plans[0].live_advantages.any())


def test_a_batch_is_used_with_the_slope_and_kappa_of_those_before(hand_rollout: MakeRollout, total_world: Any) -> None:
    """A batch that would open the gate, and one that would move kappa, change their own plans by nothing."""
    estimator, rollout = make_estimator(total_world), make_rollout(hand_rollout)
    _, first = estimator.estimate(rollout, stats_of(rollout))
    assert (first["imagination/kappa"], first["imagination/rung_0/slope"]) == (0.5, 0.0)
    assert first["imagination/rung_0/r2"] == 0.0
    estimator._rungs[0].measure(0.5, torch.ones(2), torch.full((2,), 0.5))
    before = estimator._rungs[0].slope.slope
    _, second = estimator.estimate(rollout, stats_of(rollout))
    assert second["imagination/rung_0/slope"] == before > 0.4
    assert estimator._rungs[0].slope.slope != before
    twice = make_rollout(hand_rollout).select(torch.tensor([0, 0, 1, 1]))
    twice.group.copy_(torch.tensor([0, 0, 1, 1]))
    once, rows = stats_of(rollout), torch.tensor([0, 0, 1, 1])
    assert once.likely is not None
    doubled = PolicyStats(once.values[rows], once.ref_logprobs[rows], once.likely.select(rows))
    _, third = estimator.estimate(twice, doubled)
    _, fourth = estimator.estimate(twice, doubled)
    assert third["imagination/kappa"] == 0.5  # one group tells nothing of kappa
    assert fourth["imagination/kappa"] == pytest.approx(1.0)  # in the batch before, the group told all


def test_critics_learn_from_the_actions_taken_only(hand_rollout: MakeRollout, total_world: Any) -> None:
    estimator, rollout = make_estimator(total_world, max_rung=2), make_rollout(hand_rollout)
    estimator.estimate(rollout, stats_of(rollout))
    for rung in estimator._rungs:
        ((features, targets),) = rung.state_dict()["replay"]
        assert targets.tolist() == [1, 1, 1, 0, 0, 0]
        # Log pi of 4, 5, 1 and of 5, 4, 4.
        assert features[:, 0].exp().tolist() == pytest.approx([0.5, 0.3, 0.2, 0.3, 0.5, 0.5])
    assert set(estimator.learn()) == {f"imagination/rung_{index}/loss" for index in range(3)}


@pytest.mark.parametrize("max_rung", [0, 1, 2])
def test_a_policy_that_takes_no_live_token_trains_no_critic(
    hand_rollout: MakeRollout, total_world: Any, max_rung: int
) -> None:
    """A flat policy: no token passes min_probability but the likeliest, which the rollout never takes."""
    estimator, rollout = make_estimator(total_world, max_rung=max_rung), make_rollout(hand_rollout)
    flat = torch.full((*rollout.actions.shape, 1000), 1e-3).log()
    flat[..., 999] += 1e-3  # the likeliest, and no action of the rollout
    stats = replace(stats_of(rollout), likely=likely_tokens(flat, 3))
    for _ in range(2):
        _, metrics = estimator.estimate(rollout, stats)
        assert all(math.isfinite(value) for value in metrics.values())
        assert estimator.learn() == {}  # no loss is logged, for nothing was learnt


def test_a_restored_estimator_goes_on_to_the_bit(hand_rollout: MakeRollout, total_world: Any) -> None:
    rollout = make_rollout(hand_rollout)
    first, second = make_estimator(total_world, 2), make_estimator(total_world, 2)
    first.estimate(rollout, stats_of(rollout))
    first.learn()
    second.load_state_dict(first.state_dict())
    plans = [estimator.estimate(rollout, stats_of(rollout)) for estimator in (first, second)]
    assert plans[0][1] == plans[1][1]
    assert torch.equal(plans[0][0].advantages, plans[1][0].advantages)


def test_alternatives_that_were_not_read_are_asked_for(hand_rollout: MakeRollout, total_world: Any) -> None:
    rollout, estimator = make_rollout(hand_rollout), make_estimator(total_world)
    assert (estimator.num_likely, PlainAdvantages(PPOConfig()).num_likely) == (3, 0)
    with pytest.raises(ValueError, match=r"read the rollout with policy_stats\(.*num_likely=estimator\.num_likely"):
        estimator.estimate(rollout, replace(stats_of(rollout), likely=None))


def test_a_world_model_that_is_blind_to_actions_is_refused(hand_rollout: MakeRollout, total_world: Any) -> None:
    total_world.action_conditional = False
    with pytest.raises(
        TypeError, match="TotalWorld predicts the policy's average future and cannot answer what follows"
    ):
        make_estimator(total_world, max_rung=1)
    # Rung 0 asks no world model.
    rollout = make_rollout(hand_rollout)
    assert make_estimator(total_world).estimate(rollout, stats_of(rollout))
