"""Advantages of whole rollouts by hand, and canaries that a one-step shift of the rewards kills."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from worldmtp.agents.advantages import (
    PlainAdvantages,
    advantage_scale,
    gae_of,
    monte_carlo_returns,
    per_step,
    return_ceiling,
)
from worldmtp.agents.config import PPOConfig
from worldmtp.agents.ppo import PolicyStats
from worldmtp.agents.queues import ActedStep
from worldmtp.agents.rollout import Rollout, collect_rollout
from worldmtp.agents.world_learning import state_targets

MakeRollout = Callable[..., Rollout]
VALUES = torch.tensor([[0.5, 0.25, 0.5, 9.0], [0.25, 0.75, 0.5, 9.0]])


def two_rows(make: MakeRollout) -> Rollout:
    rows = [
        {"prompt": [2, 3], "actions": [4, 5, 1], "rewards": [0.0, 0.25, 1.0], "end": "terminated", "group": 4},
        {"prompt": [2], "actions": [3, 4], "rewards": [0.5, 0.25], "end": "truncated", "group": 4},
    ]
    return make(rows, steps=3, length=6)


@pytest.mark.parametrize(("bootstraps", "tail"), [(False, 0.0), (True, 0.5)])
def test_gae_by_hand(bootstraps: bool, tail: float, hand_rollout: MakeRollout) -> None:
    """Gamma 1, lambda 1/2. Nothing flows back over an end, and the 9 beyond it is read by nobody.

    Row 0: deltas .25 - .5 = -.25, .25 + .5 - .25 = .5, 1 - .5 = .5: A = .5; .5 + .25 = .75; -.25 + .375 = .125.
    Row 1: delta_1 = .25 + tail - .75, delta_0 = .5 + .75 - .25 = 1.
    """
    rollout, config = two_rows(hand_rollout), PPOConfig(bootstrap_truncated=bootstraps)
    last = tail - 0.5
    expected = torch.tensor([[0.125, 0.75, 0.5], [1 + last / 2, last, 0.0]])
    torch.testing.assert_close(gae_of(rollout, VALUES, 0.5, config), expected)
    targets = torch.tensor([[1.25, 1.25, 1.0], [0.75 + tail, 0.25 + tail, 0.0]])
    torch.testing.assert_close(monte_carlo_returns(rollout, config, VALUES), targets)
    paid = torch.tensor([[1.25, 1.25, 1.0], [0.75, 0.25, 0.0]])  # nothing is known beyond the last reward
    torch.testing.assert_close(monte_carlo_returns(rollout, config), paid)


def test_one_number_per_episode_and_the_scale(hand_rollout: MakeRollout) -> None:
    rollout = two_rows(hand_rollout)
    advantages = per_step(torch.tensor([3.0, -1.0]), rollout)
    assert advantages.tolist() == [[3, 3, 3], [-1, -1, 0]]
    assert advantage_scale(advantages, rollout) == pytest.approx((29 / 5) ** 0.5)  # not over the missing step
    assert advantage_scale(torch.zeros_like(advantages), rollout) == 1.0


def test_the_group_baseline_uses_the_kappa_of_batches_before(hand_rollout: MakeRollout) -> None:
    """Two episodes, 1.25 and .75: each is compared with the other, whatever kappa."""
    rollout = two_rows(hand_rollout)
    estimator = PlainAdvantages(PPOConfig(advantage="group", scale_advantages=False))
    stats = PolicyStats(VALUES, rollout.logprobs)
    plan, metrics = estimator.estimate(rollout, stats)
    assert plan.advantages.tolist() == [[0.5, 0.5, 0.5], [-0.5, -0.5, 0.0]]
    assert metrics["imagination/kappa"] == 0.5
    assert plan.live_ids.shape == (2, 3, 0)
    scaled, _ = PlainAdvantages(PPOConfig(advantage="group")).estimate(rollout, stats)
    assert scaled.advantages.tolist() == [[1, 1, 1], [-1, -1, 0]]  # root mean square one, the mean left as it is


class Babble:
    """Uniform tokens of 1 .. 6."""

    def act(self, obs: dict[str, Any], infos: dict[str, Any], generator: torch.Generator | None) -> ActedStep:
        actions = torch.randint(1, 7, (len(obs["length"]),), generator=generator)
        return ActedStep(actions, torch.zeros(len(actions)))


def of_action(text: list[int], action: int) -> float:
    return action / 8


def of_next_state(text: list[int], action: int) -> float:
    return (sum(text) % 8) / 8


def of_last_token(text: list[int], action: int) -> float:
    return float(action == 1)


@pytest.mark.parametrize("reply", [[], [5], [2, 5]])
@pytest.mark.parametrize("pay", [of_action, of_next_state, of_last_token])
def test_shift_canaries(pay: Callable[[list[int], int], float], reply: list[int], replying_env: Any) -> None:
    """What is paid for a_t, for s_{t+1} or for the last token arrives where it was earned, and nowhere else.

    The expected rewards and returns are read off the finished texts. With values equal to the true returns every
    advantage is zero, exactly: all numbers here are eighths.
    """
    env = replying_env([[2], [3, 4], [5, 6, 2], [4]] * 4, 4, lambda _: reply, pay)
    rollout = collect_rollout(env, Babble(), torch.Generator().manual_seed(0), {})
    ends = torch.zeros_like(rollout.actions)
    rewards = torch.zeros_like(rollout.rewards)
    for b, t in torch.nonzero(rollout.step_mask).tolist():
        last = t + 1 == int(rollout.step_mask[b].sum())
        ends[b, t] = rollout.attention_mask[b].sum() if last else rollout.action_index[b, t + 1]
        text = rollout.input_ids[b, : ends[b, t]].tolist()
        rewards[b, t] = pay(text, text[int(rollout.action_index[b, t])])
    assert torch.equal(rollout.rewards, rewards)
    to_go = torch.cat([rewards.flip(1).cumsum(1).flip(1), torch.zeros((16, 1))], dim=1)
    assert torch.equal(gae_of(rollout, to_go, 0.5, PPOConfig()), torch.zeros_like(rewards))
    for shift in (1, -1):
        moved = torch.where(rollout.step_mask, rewards.roll(shift, dims=1), 0.0)
        assert float(gae_of(replace(rollout, rewards=moved), to_go, 0.5, PPOConfig()).abs().max()) > 0.1

    targets = state_targets(rollout, PPOConfig())
    places = torch.where(rollout.step_mask, rollout.action_index, 0)
    assert torch.equal(_at(targets.rewards, places, rollout), rewards)
    assert torch.equal(_at(targets.returns, places - 1, rollout), torch.where(rollout.step_mask, to_go[:, :-1], 0.0))
    assert torch.equal(_at(targets.returns, places, rollout), torch.where(rollout.step_mask, to_go[:, 1:], 0.0))
    assert int(targets.arrived_mask.sum()) == rollout.num_tokens
    moved = torch.where(rollout.step_mask, rewards.roll(1, dims=1), 0.0)
    assert not torch.equal(
        _at(state_targets(replace(rollout, rewards=moved), PPOConfig()).rewards, places, rollout), rewards
    )


def _at(values: Tensor, places: Tensor, rollout: Rollout) -> Tensor:
    return torch.where(rollout.step_mask, values.gather(1, places.clamp_min(0)), 0.0)


def test_the_noise_ceiling_of_a_batch_by_hand() -> None:
    """Groups mixed up: 7 has -1 and 1, 2 has 1 and 3, 5 has 3 and 5. MSB = 8, MSW = 2, so rho = 6 / 10."""
    returns, group = torch.tensor([1.0, -1.0, 3.0, 3.0, 1.0, 5.0]), torch.tensor([2, 7, 5, 2, 7, 5])
    assert return_ceiling(returns, group) == {"imagination/return_ceiling": pytest.approx(0.6**0.5)}
    assert return_ceiling(returns, torch.arange(6)) == {}
    assert return_ceiling(returns, torch.tensor([0, 0, 1, 1, 1, 2])) == {}
    assert return_ceiling(torch.ones(6), group) == {}
    for seed in range(100):  # nearly nothing is paid: no draw of the groups may have nothing but zeros
        rare = (torch.rand(16, generator=torch.Generator().manual_seed(seed)) < 0.15).double()
        assert all(0 <= value <= 1 for value in return_ceiling(rare, torch.arange(16) // 2).values())
