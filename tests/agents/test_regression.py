"""Running slopes and means, worked by hand."""

import pytest
import torch

from worldmtp.agents.advantages import RunningMean, RunningSlope, correlation


def test_the_slope_of_two_batches() -> None:
    slope = RunningSlope(decay=0.5, initial=0.25)
    assert slope.slope == 0.25
    slope.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]))
    assert slope.slope == pytest.approx(1.5 / 2.5)  # means of x y and x^2
    slope.update(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0]))
    assert slope.slope == pytest.approx(0.75 / 2.25)  # (1.5 / 2 + 0) / (2.5 / 2 + 1)


@pytest.mark.parametrize(("y", "expected"), [(-3.0, 0.0), (0.5, 0.5), (7.0, 1.0)])
def test_the_slope_is_clipped(y: float, expected: float) -> None:
    slope = RunningSlope()
    slope.update(torch.ones(2), torch.full((2,), y))
    assert slope.slope == pytest.approx(expected)


def test_without_variation_in_x_the_slope_stays_where_it_started() -> None:
    slope = RunningSlope(initial=0.5)
    slope.update(torch.zeros(3), torch.ones(3))
    assert slope.slope == 0.5


def test_the_bias_corrected_mean() -> None:
    mean = RunningMean(decay=0.5)
    assert mean.mean == 0.0
    mean.update(1.0)
    assert mean.mean == 1.0
    mean.update(3.0)
    assert mean.mean == pytest.approx(7 / 3)  # (1/4 * 1 + 1/2 * 3) / (3/4)


def test_states_are_restored() -> None:
    slope, mean = RunningSlope(), RunningMean()
    slope.update(torch.ones(2), torch.tensor([0.2, 0.6]))
    mean.update(0.4)
    other_slope, other_mean = RunningSlope(), RunningMean()
    other_slope.load_state_dict(slope.state_dict())
    other_mean.load_state_dict(mean.state_dict())
    assert (other_slope, other_mean) == (slope, mean)
    assert (other_slope.slope, other_mean.mean) == (pytest.approx(0.4), pytest.approx(0.4))


def test_correlation() -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    assert correlation(x, 5 - 2 * x) == pytest.approx(-1.0)
    assert correlation(x, torch.tensor([0.0, 3.0, 0.0])) == pytest.approx(0.0, abs=1e-12)
    # Deviations (-1, 0, 1) and (-1, 1, 0): 1 / (sqrt 2 sqrt 2).
    assert correlation(x, torch.tensor([0.0, 2.0, 1.0])) == pytest.approx(0.5)
    assert correlation(x, torch.ones(3)) == 0.0
