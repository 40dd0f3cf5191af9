"""Returns against hand-worked answers, reductions and shift canaries."""

import pytest
import torch
from torch import Tensor

from worldmtp.returns import generalized_advantages, lambda_returns, value_expansion


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_monte_carlo_returns_worked_by_hand() -> None:
    # G_2 = 4 + 0.5 * 8 = 8;  G_1 = 2 + 0.5 * 8 = 6;  G_0 = 1 + 0.5 * 6 = 4: only the last value counts.
    returns = lambda_returns(tensor([1, 2, 4]), tensor([0.5, 0.5, 0.5]), tensor([70, 70, 8]), 1.0)
    assert returns.tolist() == [[4, 6, 8]]


def test_lambda_returns_worked_by_hand() -> None:
    # lambda = 0.5, all discounts 1, v = (v_1, v_2) = (2, 4)
    # G_1 = 1 + 0.5 * 4 + 0.5 * 4 = 5;  G_0 = 0 + 0.5 * 2 + 0.5 * 5 = 3.5
    returns = lambda_returns(tensor([0, 1]), tensor([1, 1]), tensor([2, 4]), 0.5)
    assert returns.tolist() == [[3.5, 5]]


def test_lambda_returns_agree_with_published_values() -> None:
    # The golden case of rlax's multistep tests (Apache-2.0), figures only.
    returns = lambda_returns(
        tensor([1.0, 0.0, -1.0, 0.0, 1.0], [0.5, 0.8, -0.7, 0.0, 2.1]),
        tensor([0.5, 0.9, 1.0, 0.5, 0.8], [0.9, 0.5, 0.3, 0.8, 0.7]),
        tensor([3.0, 1.0, 5.0, -5.0, 3.0], [-1.7, 1.2, 2.3, 2.2, 2.7]),
        0.75,
    )
    expected = tensor([1.6460547, 0.72281253, 0.7375, 0.65, 3.4], [0.7866317, 0.9913063, 0.1101501, 2.834, 3.99])
    torch.testing.assert_close(returns, expected, atol=1e-6, rtol=0)


def random_case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn((4, width), generator=generator, dtype=torch.float64) for width in (6, 7))
    discounts = torch.rand((4, 6), generator=generator, dtype=torch.float64)
    return rewards, discounts, values


@pytest.mark.parametrize("seed", range(3))
def test_lambda_zero_is_the_one_step_target(seed: int) -> None:
    rewards, discounts, values = random_case(seed)
    torch.testing.assert_close(
        lambda_returns(rewards, discounts, values[:, 1:], 0.0), rewards + discounts * values[:, 1:]
    )


@pytest.mark.parametrize("seed", range(3))
def test_lambda_one_is_monte_carlo(seed: int) -> None:
    rewards, discounts, values = random_case(seed)
    # Written out as a sum of discounted rewards, not as a recursion.
    expected = torch.zeros_like(rewards)
    for t in range(6):
        carried = torch.ones(4, dtype=torch.float64)
        for later in range(t, 6):
            expected[:, t] += carried * rewards[:, later]
            carried = carried * discounts[:, later]
        expected[:, t] += carried * values[:, -1]
    torch.testing.assert_close(lambda_returns(rewards, discounts, values[:, 1:], 1.0), expected)


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 0.95, 1.0])
def test_gae_is_the_sum_of_td_errors(lambda_: float) -> None:
    rewards, discounts, values = random_case(7)
    # Schulman et al. 2016, eq. 16: A_t = sum_l (prod of d * lambda) delta_{t+l}
    delta = rewards + discounts * values[:, 1:] - values[:, :-1]
    expected = torch.zeros_like(rewards)
    for t in range(6):
        weight = torch.ones(4, dtype=torch.float64)
        for later in range(t, 6):
            expected[:, t] += weight * delta[:, later]
            weight = weight * discounts[:, later] * lambda_
    torch.testing.assert_close(generalized_advantages(rewards, discounts, values, lambda_), expected)


def test_terminated_and_truncated_are_told_apart() -> None:
    # Two episodes of two steps, reward 1 at the second, values 10 everywhere, lambda 1.
    # terminated: G = (1, 1), the value after the end counts nothing.
    # truncated, going on: G = (11, 11), bootstrapped by v = 10.
    rewards, values = tensor([0, 1, 0], [0, 1, 0]), torch.full((2, 4), 10.0, dtype=torch.float64)
    discounts, lambdas = tensor([1, 0, 0], [1, 1, 0]), tensor([1, 0, 0], [1, 0, 0])
    advantages = generalized_advantages(rewards, discounts, values, lambdas)
    assert advantages[:, :2].tolist() == [[1 - 10, 1 - 10], [11 - 10, 11 - 10]]


def test_values_without_the_bootstrap_are_refused() -> None:
    rewards, discounts, values = random_case(0)
    with pytest.raises(ValueError, match="values has 6 entries for 6 rewards; it needs one more"):
        generalized_advantages(rewards, discounts, values[:, 1:], 1.0)


def test_value_expansion_worked_by_hand() -> None:
    # r = (1, 2), d = (0.5, 0.5), v = (3, 5, 7)
    # T_0 = 3;  T_1 = 1 + 0.5 * 5 = 3.5;  T_2 = 1 + 0.5 * 2 + 0.25 * 7 = 3.75
    assert value_expansion(tensor([1, 2]), tensor([0.5, 0.5]), tensor([3, 5, 7])).tolist() == [[3, 3.5, 3.75]]


def test_nothing_is_collected_after_an_imagined_end() -> None:
    # The first step ends it: T_2 = T_1 = 1, whatever is imagined behind.
    assert value_expansion(tensor([1, 9]), tensor([0, 1]), tensor([3, 5, 7])).tolist() == [[3, 1, 1]]


@pytest.mark.parametrize("which", ["action", "next_state", "last"])
def test_shift_canaries(which: str) -> None:
    """Worlds where the right answer is known and a one-step shift of any input gives another."""
    actions = tensor([1, 0, 1, 1])
    rewards = {
        "action": actions,  # paid for a_t
        "next_state": tensor([1, 1, 2, 3]),  # paid for what s_{t+1} holds: the running sum of actions
        "last": tensor([0, 0, 0, 1]),
    }[which]
    expected = {"action": [3.0, 2, 2, 1], "next_state": [7.0, 6, 5, 3], "last": [1.0, 1, 1, 1]}[which]
    discounts, next_values = tensor([1, 1, 1, 0]), tensor([0, 0, 0, 0])
    assert lambda_returns(rewards, discounts, next_values, 1.0).tolist() == [expected]
    assert lambda_returns(rewards.roll(1, dims=1), discounts, next_values, 1.0).tolist() != [expected]
    assert lambda_returns(rewards, discounts.roll(-1, dims=1), next_values, 1.0).tolist() != [expected]
