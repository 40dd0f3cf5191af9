"""Group baselines: what an episode is compared with never depends on its own return."""

import pytest
import torch

from worldmtp.agents.advantages import (
    RunningSlope,
    leave_one_out_mean,
    same_return_fraction,
    shrunk_baseline,
    update_kappa,
)

# Group 7 of three, group 3 of two, group 9 of one; the returns add up to 3.
RETURNS = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])
GROUP = torch.tensor([7, 7, 7, 3, 3, 9])
LEAVE_ONE_OUT = torch.tensor([0.5, 1.0, 0.5, 0.0, 0.0, 0.4])  # alone: the mean of all others, 2 / 5
BATCH_MEAN = torch.tensor([0.4, 0.6, 0.4, 0.6, 0.6, 0.4])  # of the other five


def test_leave_one_out_by_hand() -> None:
    torch.testing.assert_close(leave_one_out_mean(RETURNS, GROUP), LEAVE_ONE_OUT)


def test_groups_need_not_be_contiguous() -> None:
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(leave_one_out_mean(RETURNS[order], GROUP[order]), LEAVE_ONE_OUT[order])


@pytest.mark.parametrize(
    ("kappa", "expected"), [(0.0, BATCH_MEAN), (1.0, LEAVE_ONE_OUT), (0.5, (BATCH_MEAN + LEAVE_ONE_OUT) / 2)]
)
def test_kappa_goes_from_the_batch_mean_to_rloo(kappa: float, expected: torch.Tensor) -> None:
    torch.testing.assert_close(shrunk_baseline(RETURNS, GROUP, kappa), expected)


@pytest.mark.parametrize("row", range(6))
def test_ones_own_return_does_not_move_ones_baseline(row: int) -> None:
    other = RETURNS.double()
    other[row] += 10.0
    before, after = shrunk_baseline(RETURNS.double(), GROUP, 0.7), shrunk_baseline(other, GROUP, 0.7)
    assert float(after[row]) == pytest.approx(float(before[row]), abs=1e-12)
    assert float((after - before).abs().max()) > 0.1  # that of the others moves


def test_kappa_is_one_where_the_group_tells_all_and_zero_where_it_misleads() -> None:
    group = torch.tensor([0, 0, 1, 1])
    telling, misleading = RunningSlope(initial=0.5), RunningSlope(initial=0.5)
    update_kappa(telling, torch.tensor([1.0, 1.0, 0.0, 0.0]), group)  # G = loo
    update_kappa(misleading, torch.tensor([1.0, 0.0, 1.0, 0.0]), group)  # G = 1 - loo
    assert telling.slope == pytest.approx(1.0)
    assert misleading.slope == 0.0


def test_kappa_by_hand() -> None:
    # Groups (1, 1), (0, 2): others' means of total 4 are 1, 1, 4/3, 2/3; loo 1, 1, 2, 0.
    # x = loo - m = (0, 0, 2/3, -2/3), y = G - m = (0, 0, -4/3, 4/3): slope -2, clipped to 0 unless the floor is lower.
    slope = RunningSlope(low=-5.0)
    update_kappa(slope, torch.tensor([1.0, 1.0, 0.0, 2.0]), torch.tensor([0, 0, 1, 1]))
    assert slope.slope == pytest.approx(-2.0)


def test_a_single_episode_is_compared_with_nothing() -> None:
    assert shrunk_baseline(torch.tensor([3.0]), torch.tensor([0]), 0.5).tolist() == [0.0]


def test_groups_whose_episodes_are_all_alike() -> None:
    """Of groups 0 (1, 1), 1 (0, 1) and 2 (0), the first and the last say nothing to a group baseline."""
    returns, group = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]), torch.tensor([0, 1, 0, 1, 2])
    assert same_return_fraction(returns, group) == pytest.approx(2 / 3)
