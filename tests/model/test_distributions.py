"""Binned distributions against answers worked by hand."""

import math

import pytest
import torch

from worldmtp.model.world_heads import binned_mean, make_bins, two_hot, two_hot_cross_entropy

BINS = torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64)


def test_bins_are_equally_spaced_with_both_ends():
    assert torch.equal(make_bins(-1.0, 2.0, 4, dtype=torch.float64), BINS)
    assert make_bins(0.0, 1.0, 3).dtype == torch.float32


@pytest.mark.parametrize("num_bins", [2, 5, 51, 255])
def test_bins_are_exactly_symmetric(num_bins):
    bins = make_bins(-0.7, 0.7, num_bins)
    assert torch.equal(bins, -bins.flip(0))


def test_bins_that_are_none_are_refused():
    with pytest.raises(ValueError, match="num_bins=1 must be at least 2"):
        make_bins(0.0, 1.0, 1)
    with pytest.raises(ValueError, match=r"the range \(1.0, 1.0\) is empty"):
        make_bins(1.0, 1.0, 5)


def test_two_hot_splits_between_the_neighbours():
    targets = torch.tensor([[0.25, -1.0], [2.0, 1.0]], dtype=torch.float64)
    # .25 is three quarters of the way down from 1 to 0: 3/4 on bin 0, 1/4 on bin 1. The others lie on a bin.
    expected = torch.tensor(
        [[[0.0, 0.75, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]]],
        dtype=torch.float64,
    )
    torch.testing.assert_close(two_hot(targets, BINS), expected, rtol=0.0, atol=1e-15)


def test_two_hot_on_uneven_bins_weighs_by_distance():
    bins = torch.tensor([0.0, 1.0, 5.0])
    # 2 lies one quarter of the way from 1 to 5.
    torch.testing.assert_close(two_hot(torch.tensor(2.0), bins), torch.tensor([0.0, 0.75, 0.25]))


def test_the_mean_of_a_two_hot_is_its_target():
    targets = torch.linspace(-1.0, 2.0, 29, dtype=torch.float64)
    probs = two_hot(targets, BINS)
    torch.testing.assert_close(probs.sum(dim=-1), torch.ones(29, dtype=torch.float64))
    torch.testing.assert_close(binned_mean(probs.clamp_min(1e-300).log(), BINS), targets, rtol=0.0, atol=1e-14)


def test_targets_outside_go_to_the_ends():
    targets = torch.tensor([-3.0, 5.0], dtype=torch.float64)
    assert two_hot(targets, BINS).tolist() == [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]


@pytest.mark.parametrize("num_bins", [2, 50, 51])
def test_a_uniform_distribution_over_symmetric_bins_has_mean_zero_exactly(num_bins):
    bins = make_bins(-3.7, 3.7, num_bins)
    assert binned_mean(torch.zeros(7, num_bins), bins).tolist() == [0.0] * 7


def test_the_mean_weighs_bins_by_their_probability():
    logits = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).log()
    # (1 * -1 + 2 * 0 + 3 * 1 + 4 * 2) / 10
    torch.testing.assert_close(binned_mean(logits, BINS), torch.tensor(1.0, dtype=torch.float64))


def test_cross_entropy_is_that_of_the_two_neighbours():
    logits = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).log()
    # Target .25 is 3/4 on probability 2/10 and 1/4 on probability 3/10.
    expected = -(0.75 * math.log(0.2) + 0.25 * math.log(0.3))
    loss = two_hot_cross_entropy(logits, torch.tensor(0.25, dtype=torch.float64), BINS)
    assert loss.item() == pytest.approx(expected, abs=1e-14)


def test_its_gradient_is_probability_minus_target():
    logits = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).log().requires_grad_()
    target = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    two_hot_cross_entropy(logits, target, BINS).backward()
    expected = torch.tensor([0.1 - 0.0, 0.2 - 0.75, 0.3 - 0.25, 0.4 - 0.0], dtype=torch.float64)
    torch.testing.assert_close(logits.grad, expected, rtol=0.0, atol=1e-15)
    assert target.grad is None


def test_a_fair_coin_is_worth_one_half():
    # Fitted to outcomes 0 and 1, half each, cross-entropy ends at their frequencies, and linear bins read the mean.
    bins = make_bins(0.0, 1.0, 11, dtype=torch.float64)
    logits = torch.zeros(11, dtype=torch.float64, requires_grad=True)
    outcomes = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    for _ in range(2000):
        (gradient,) = torch.autograd.grad(two_hot_cross_entropy(logits.expand(4, -1), outcomes, bins).mean(), logits)
        logits = (logits - 5.0 * gradient).detach().requires_grad_()
    assert binned_mean(logits, bins).item() == pytest.approx(0.5, abs=1e-9)
    assert logits.softmax(dim=-1)[0].item() == pytest.approx(0.5, abs=1e-3)


def test_half_precision_logits_are_read_in_single_precision():
    bins = make_bins(0.0, 1.0, 201)
    logits = torch.zeros(201, dtype=torch.bfloat16)
    assert binned_mean(logits, bins).dtype == torch.float32
    assert binned_mean(logits, bins).item() == pytest.approx(0.5, abs=1e-6)
    loss = two_hot_cross_entropy(logits, torch.tensor(0.3), bins)
    assert loss.item() == pytest.approx(math.log(201), abs=1e-6)
