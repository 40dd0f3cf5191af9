"""PPO's losses: values and gradients worked by hand."""

import math

import pytest
import torch
from torch import Tensor

from worldmtp.objective.policy_losses import (
    all_action_loss_per_token,
    clipped_objective,
    explained_variance,
    kl_penalty_per_token,
    masked_mean,
    policy_loss_per_token,
)


def log(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),  # the policy gradient: -A grad log pi
        (1.0, -2.0, 2.0, 2.0),
        (1.5, 1.0, -1.2, 0.0),  # rose enough: capped, no gradient
        (1.5, -1.0, 1.5, 1.5),  # rose though it was bad: pushed back
        (0.5, 1.0, -0.5, -0.5),  # fell though it was good: pulled back
        (0.5, -1.0, 0.8, 0.0),  # fell enough
    ],
)
def test_the_clipped_surrogate_by_hand(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    logprobs = log(0.4 * ratio).requires_grad_(True)
    value = policy_loss_per_token(logprobs, log(0.4), torch.tensor([[advantage]], dtype=torch.float64), 0.2)
    value.sum().backward()
    assert float(value.detach()) == pytest.approx(loss, abs=1e-12)
    assert float(logprobs.grad) == pytest.approx(gradient, abs=1e-12)


def test_clipping_never_raises_the_objective() -> None:
    generator = torch.Generator().manual_seed(0)
    ratio = torch.rand(100, generator=generator) * 3
    advantages = torch.randn(100, generator=generator)
    assert bool((clipped_objective(ratio, advantages, 0.2) <= ratio * advantages).all())


def test_the_all_action_loss_is_the_expectation_of_the_sampled_one() -> None:
    """Over a ~ pi_old, here (.5, .3, .2): every action's sampled loss, weighted and added."""
    old, new = log(0.5, 0.3, 0.2), log(0.2, 0.3, 0.5)
    advantages = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
    sampled = [policy_loss_per_token(new[:, [a]], old[:, [a]], advantages[:, [a]], 0.2) for a in range(3)]
    expected = 0.5 * sampled[0] + 0.3 * sampled[1] + 0.2 * sampled[2]
    # By hand: ratios .4, 1, 2.5 -> objectives .4, -2, 1.2 * 3 = 3.6 -> -(.2 - .6 + .72) = -.32
    actual = all_action_loss_per_token(new[None], old[None], advantages[None], 0.2)
    assert float(actual) == pytest.approx(float(expected), abs=1e-12) == pytest.approx(-0.32)


def test_at_ratio_one_the_all_action_gradient_is_a_grad_pi() -> None:
    """D loss / d log pi_a = -pi_a A_a: for (.5, .3) and A = (2, -1) that is (-1, .3)."""
    old = log(0.5, 0.3)[None]
    logprobs = old.clone().requires_grad_(True)
    advantages = torch.tensor([[[2.0, -1.0]]], dtype=torch.float64)
    all_action_loss_per_token(logprobs, old, advantages, 0.2).sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[[-1.0, 0.3]]], dtype=torch.float64))


def test_padding_of_the_live_axis_counts_nothing_and_breaks_no_gradient() -> None:
    old = torch.tensor([[[math.log(0.5), -math.inf]]])
    logprobs = torch.tensor([[[math.log(0.5), -3.0]]], requires_grad=True)
    loss = all_action_loss_per_token(logprobs, old, torch.tensor([[[1.0, 7.0]]]), 0.2)
    loss.sum().backward()
    assert loss.tolist() == [[-0.5]]
    assert logprobs.grad.tolist() == [[[-0.5, 0.0]]]


@pytest.mark.parametrize(("old", "advantage"), [(-95.0, 0.0), (-200.0, 7.0)])
def test_an_unlikely_token_that_became_likely_breaks_nothing(old: float, advantage: float) -> None:
    """Its ratio is infinite in float32; without an advantage, or weighted by a probability of 0, it counts nothing."""
    logprobs = torch.tensor([[[math.log(0.5), -1.0]]], requires_grad=True)
    old_logprobs, advantages = torch.tensor([[[math.log(0.5), old]]]), torch.tensor([[[1.0, advantage]]])
    loss = all_action_loss_per_token(logprobs, old_logprobs, advantages, 0.2)
    loss.sum().backward()
    assert loss.tolist() == [[-0.5]]
    assert logprobs.grad.tolist() == [[[-0.5, 0.0]]]


def test_k3_by_hand_and_in_expectation() -> None:
    # pi = 1/2, reference = 1/4: d = -ln 2, e^d - d - 1 = 1/2 + ln 2 - 1.
    assert float(kl_penalty_per_token(log(0.5), log(0.25))) == pytest.approx(math.log(2) - 0.5)
    # pi = (1/2, 1/2), reference = (1/4, 3/4): KL = 1/2 ln 2 + 1/2 ln 2/3, the mean of k3 under pi.
    penalties = kl_penalty_per_token(log(0.5, 0.5), log(0.25, 0.75))
    assert float(penalties.mean()) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert bool((penalties > 0).all())


def test_k3_vanishes_with_its_gradient_where_the_policies_agree() -> None:
    logprobs = log(0.3).requires_grad_(True)
    penalty = kl_penalty_per_token(logprobs, log(0.3))
    penalty.sum().backward()
    assert (float(penalty.detach()), float(logprobs.grad)) == (0.0, 0.0)


def test_masked_mean() -> None:
    values = torch.tensor([[1.0, 2.0], [float("nan"), 6.0]])
    assert float(masked_mean(values, torch.tensor([[True, True], [False, True]]))) == 3.0
    assert float(masked_mean(values, torch.zeros((2, 2), dtype=torch.bool))) == 0.0


def test_the_means_of_parts_add_up_to_the_mean_of_the_whole() -> None:
    """Four entries count: (1 + 2) / 4 and (6 + 3) / 4."""
    values = torch.tensor([[1.0, 2.0, 9.0], [float("nan"), 6.0, 3.0]])
    mask = torch.tensor([[True, True, False], [False, True, True]])
    parts = [float(masked_mean(values[[row]], mask[[row]], mask.sum())) for row in range(2)]
    assert parts == [0.75, 2.25]
    assert sum(parts) == float(masked_mean(values, mask))


def test_explained_variance() -> None:
    target = torch.tensor([0.0, 4.0])  # variance 4
    assert explained_variance(torch.tensor([0.0, 2.0]), target) == pytest.approx(0.75)
    assert explained_variance(torch.tensor([5.0, 7.0]), target) == pytest.approx(0.75)  # an offset is no error here
    assert explained_variance(target, target) == 0.0
    assert explained_variance(torch.tensor([0.0, 8.0]), target) == pytest.approx(-3.0)
    assert explained_variance(target, torch.ones(2)) == 0.0
