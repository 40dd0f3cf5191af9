"""Stacked horizons by hand, and the baseline they make."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from worldmtp.agents.advantages import gae_of
from worldmtp.agents.config import ImaginationConfig, PPOConfig
from worldmtp.agents.imagination.baseline import (
    ExpansionAdvantages,
    StackedHorizons,
    imagined_expansions,
    least_on_simplex,
)
from worldmtp.agents.imagination.imagined_returns import Acting, acted_states, imagined_root_returns
from worldmtp.agents.ppo import PolicyStats
from worldmtp.agents.rollout import Rollout
from worldmtp.dynamics import acting_policy

MakeRollout = Callable[..., Rollout]

# The acting policy at temperature 1, and returns of any size: TotalWorld's are sums of token ids.
ACTING = Acting(acting_policy(1.0), (-1e3, 1e3))
RETURNS = torch.tensor([0.0, 1.0, 2.0, 3.0])


def stacked(*errors: list[float], batches: int = 1, min_batches: int = 1) -> StackedHorizons:
    """Horizons 0, 1 .. whose errors on four states are these."""
    stack = StackedHorizons(len(errors) - 1, decay=0.9, min_batches=min_batches)
    for _ in range(batches):
        stack.update(RETURNS[:, None] + torch.tensor(errors).T, RETURNS)
    return stack


def close(actual: Tensor, *expected: float) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_skills_by_hand() -> None:
    # Mean squares 4, 1, 8: skills 1 - 1/4 and 1 - 8/4.
    close(stacked([2, -2, 2, -2], [1, 1, 1, 1], [0, 0, 4, 4]).skills(), 0.0, 0.75, -1.0)
    close(StackedHorizons(2, 0.9, 1).skills(), 0.0, 0.0, 0.0)


def test_the_best_horizon_takes_all_where_the_others_add_nothing() -> None:
    """Errors e, e / 2 and e / 4 are one error: the least is best, here of horizon 2."""
    close(stacked([4, -4, 4, -4], [2, -2, 2, -2], [1, -1, 1, -1]).weights(), 0.0, 0.0, 1.0)


def test_independent_errors_share_by_their_precision() -> None:
    """Orthogonal errors of mean square 4, 1 and 2: weights as 1/4 : 1 : 1/2, out of 7/4."""
    root_two = 2**0.5
    weights = stacked([2, 2, -2, -2], [1, -1, 1, -1], [root_two, -root_two, -root_two, root_two]).weights()
    close(weights, 1 / 7, 4 / 7, 2 / 7)


def test_weights_stay_on_the_simplex() -> None:
    """Errors (1, 1) and (1.9, 2.1) about one direction: unconstrained, least squares would extrapolate."""
    for errors in (
        [[1.0, 1.0, 1.0, 1.2], [0.5, 0.5, 0.5, 0.4]],
        [[3, 1, 2, 0.5], [1, 0.5, 1, 0.1], [0.2, 0.1, 0.3, 0]],
    ):
        weights = stacked(*errors).weights()
        assert bool((weights >= 0).all())
        assert float(weights.sum()) == pytest.approx(1.0)


def test_a_horizon_without_skill_gets_no_weight_even_where_it_would_help() -> None:
    """Orthogonal, so least squares would use it; but its mean square, 4, is not below the critic's, 1."""
    close(stacked([1, -1, 1, -1], [2, 2, -2, -2]).weights(), 1.0, 0.0)


def test_the_gate_is_shut_before_min_batches() -> None:
    errors = ([2.0, -2.0, 2.0, -2.0], [0.5, 0.5, 0.5, 0.5])
    close(stacked(*errors, batches=2, min_batches=3).weights(), 1.0, 0.0)
    assert float(stacked(*errors, batches=3, min_batches=3).weights()[1]) > 0.5


@pytest.mark.parametrize("critic", [[0.0] * 4, [1.0, -1.0, 1.0, -1.0]])
def test_a_perfect_horizon_does_not_break_the_solver(critic: list[float]) -> None:
    weights = stacked(critic, [0.0] * 4).weights()
    close(weights, *((1.0, 0.0) if critic[0] == 0 else (0.0, 1.0)))


def test_old_batches_fade() -> None:
    # Mean squares 4 then 1 of the critic, always 1 of the other: .9 * 4 + 1 = 4.6 and 1.9.
    stack = stacked([2, -2, 2, -2], [1, 1, 1, 1])
    stack.update(RETURNS[:, None] + torch.ones((4, 2)), RETURNS)
    close(stack.skills(), 0.0, 1 - 1.9 / 4.6)
    restored = StackedHorizons(1, 0.9, 1)
    restored.load_state_dict(stack.state_dict())
    assert torch.equal(restored.weights(), stack.weights())
    assert torch.equal(restored.skills(), stack.skills())


def rollout_of(make: MakeRollout) -> Rollout:
    rows = [
        {"prompt": [2, 3], "actions": [4, 1], "rewards": [0.25, 1.0], "end": "terminated"},
        {"prompt": [2], "actions": [5], "rewards": [0.5], "end": "truncated"},
    ]
    return make(rows, steps=2, length=5)


def test_expansions_by_hand(hand_rollout: MakeRollout, total_world: Any) -> None:
    """Roots 5, 9 and 2 in order of (row, step); greedy-like: logit 5 makes (total mod 7) the mode.

    With gamma 1/2 and continuation 1/2, T_1 = a / 10 + (total + a) / 4 for the token a imagined, 0 .. 6.
    """
    rollout = rollout_of(hand_rollout)
    generator, states = torch.Generator().manual_seed(0), acted_states(total_world, rollout)
    expansions, _ = imagined_expansions(total_world, ACTING, rollout, states, 1, 400, 0.5, 64, generator)
    assert expansions[:, 0].tolist() == [5.0, 9.0, 2.0]
    probs = [torch.nn.functional.one_hot(torch.tensor(total % 7), 7).mul(5.0).softmax(0) for total in (5, 9, 2)]
    tokens = torch.arange(7.0)
    exact = torch.stack(
        [(p * (tokens / 10 + (total + tokens) / 4)).sum() for p, total in zip(probs, (5, 9, 2), strict=True)]
    )
    # Standard error below 0.35 * 2 / 20 = 0.035; 5 of them: false alarm below 1e-5, and the seed is fixed.
    torch.testing.assert_close(expansions[:, 1], exact, atol=0.175, rtol=0)
    # The same of the first roots alone, one draw a call.
    roots = torch.stack(
        [imagined_root_returns(total_world, ACTING, rollout, states, 1, 0.5, generator) for _ in range(400)]
    )
    torch.testing.assert_close(roots.mean(dim=0), exact[[0, 2]], atol=0.175, rtol=0)


def stats_of(rollout: Rollout, values: list[list[float]]) -> PolicyStats:
    return PolicyStats(torch.tensor(values), rollout.logprobs)


def test_with_a_shut_gate_the_baseline_is_the_critic(hand_rollout: MakeRollout, total_world: Any) -> None:
    """PPO with lambda = 1: 1.25 - 5, 1 - 9; and .5 - 2 at the truncation that ends."""
    rollout, ppo = rollout_of(hand_rollout), PPOConfig(scale_advantages=False)
    config = ImaginationConfig(use="baseline", horizon=2, num_rollouts=2, min_batches=2)
    estimator = ExpansionAdvantages(total_world, ACTING, config, ppo, torch.Generator().manual_seed(0))
    stats = stats_of(rollout, [[5.0, 9.0, 0.0], [2.0, 0.0, 0.0]])
    plan, metrics = estimator.estimate(rollout, stats)
    torch.testing.assert_close(plan.advantages, torch.tensor([[-3.75, -8.0], [-1.5, 0.0]]))
    torch.testing.assert_close(plan.advantages, gae_of(rollout, stats.values, 1.0, ppo))
    torch.testing.assert_close(plan.value_targets, torch.tensor([[1.25, 1.0], [0.5, 0.0]]))
    assert (metrics["imagination/gate_open"], metrics["imagination/weight_h0"]) == (0.0, 1.0)
    assert metrics["imagination/imagined_tokens"] == 3 * 2 * 2
    assert plan.live_ids.shape == (2, 2, 0)


def test_the_weights_of_a_batch_come_from_the_batches_before(hand_rollout: MakeRollout, total_world: Any) -> None:
    rollout, ppo = rollout_of(hand_rollout), PPOConfig(scale_advantages=False)
    config = ImaginationConfig(use="baseline", horizon=1, num_rollouts=2, min_batches=1)
    estimator = ExpansionAdvantages(total_world, ACTING, config, ppo, torch.Generator().manual_seed(0))
    stats = stats_of(rollout, [[5.0, 9.0, 0.0], [2.0, 0.0, 0.0]])
    first, metrics = estimator.estimate(rollout, stats)
    assert metrics["imagination/skill_h1"] == 0.0
    second, metrics = estimator.estimate(rollout, stats)
    assert metrics["imagination/skill_h1"] > 0.3  # T_1 halves the critic's overestimate
    assert metrics["imagination/gate_open"] == 1.0
    assert float((second.advantages - first.advantages).abs().max()) > 1.0


def test_a_horizon_the_model_cannot_take_is_refused(total_world: Any) -> None:
    total_world.max_horizon = 2
    with pytest.raises(ValueError, match="horizon=3 exceeds the 2 steps"):
        ExpansionAdvantages(total_world, ACTING, ImaginationConfig(horizon=3), PPOConfig(), torch.Generator())


def brute_force(moments: Tensor) -> float:
    """The least w' E w on the simplex, by trying every support."""
    least = float("inf")
    for count in range(1, len(moments) + 1):
        for support in combinations(range(len(moments)), count):
            index = torch.tensor(support)
            solved = torch.linalg.solve(moments[index][:, index], torch.ones(count, dtype=moments.dtype))
            w = torch.zeros(len(moments), dtype=moments.dtype)
            w[index] = solved / solved.sum()
            if bool((w >= 0).all()):
                least = min(least, float(w @ moments @ w))
    return least


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_the_least_on_the_simplex_is_that_of_all_supports(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    for num_states in (size, 3 * size, 20 * size):
        for _ in range(8):
            shared = torch.randn(num_states, 1, generator=generator, dtype=torch.float64)
            own = torch.randn(num_states, size, generator=generator, dtype=torch.float64)
            errors = (shared + own) * torch.linspace(1, 0.3, size, dtype=torch.float64)
            moments = errors.T @ errors / num_states
            w = least_on_simplex(moments)
            assert bool((w >= 0).all())
            assert float(w.sum()) == pytest.approx(1.0)
            assert float(w @ moments @ w) == pytest.approx(brute_force(moments), rel=1e-6, abs=1e-7)


def test_forty_horizons_satisfy_the_optimality_conditions() -> None:
    """No coordinate has a gradient (E w)_j below w' E w, and those of the support have just that."""
    generator = torch.Generator().manual_seed(0)
    errors = torch.randn(500, 41, generator=generator) * torch.linspace(1, 0.3, 41) + torch.randn(
        500, 1, generator=generator
    )
    stack = StackedHorizons(40, 0.9, 0)
    stack.update(errors, torch.zeros(500))
    w = stack.weights()
    moments = errors.T.double() @ errors.double() / 500
    gradient, value = moments @ w, float(w @ moments @ w)
    assert float(gradient.min()) > value - 1e-6
    torch.testing.assert_close(gradient[w > 0], torch.full_like(gradient[w > 0], value), atol=1e-6, rtol=0)
    assert 1 < int((w > 0).sum()) < 41
