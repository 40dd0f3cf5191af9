"""Imagined against realized returns."""

import numpy as np
import pytest

from worldmtp.analysis.return_agreement import kendall, known_roots, return_agreement, spearman


def with_returns(make_artefact, imagined, realized):
    """The first rows of the world, with one root per sequence; the rest unknown."""
    artefact = make_artefact([None])
    artefact.imagined_return[: len(imagined), 0] = imagined
    artefact.realized_return[: len(realized), 0] = realized
    return artefact


def test_bias_slope_and_correlation_by_hand(make_artefact):
    # x = 1 2 3 4, y = 2 2 4 8: mean x 2.5, mean y 4, bias -1.5. Sxy = 3 + 1 + 0 + 6 = 10, Sxx = 5, Syy = 24.
    result = return_agreement(with_returns(make_artefact, [1.0, 2, 3, 4], [2.0, 2, 4, 8]), generator=0)
    assert result.bias.estimate == pytest.approx(-1.5)
    assert result.slope.estimate == pytest.approx(2.0)
    assert result.pearson.estimate == pytest.approx(10 / np.sqrt(5 * 24))
    # Ranks 1 2 3 4 and 1.5 1.5 3 4: Sxy = 4.5, Sxx = 5, Syy = 4.5.
    assert result.spearman == pytest.approx(4.5 / np.sqrt(5 * 4.5))
    # Of six pairs five are in one order and one is a tie of y: tau-b = 5 / sqrt(6 * 5).
    assert result.kendall == pytest.approx(5 / np.sqrt(6 * 5))
    assert (result.num_roots, result.num_sequences) == (4, 4)
    assert result.bias.method == "jackknife t"


def test_the_roots_of_a_sequence_are_resampled_together(make_artefact):
    artefact = make_artefact([None])
    generator = np.random.default_rng(0)
    per_sequence = generator.normal(size=40)
    artefact.imagined_return[:40] = 0.0
    artefact.realized_return[:40] = per_sequence[:, None]
    result = return_agreement(artefact, generator=1)
    # 160 roots but 40 independent values: ±1.645 / sqrt(40) * sd, not / sqrt(160).
    expected_width = 2 * 1.645 * per_sequence.std() / np.sqrt(40)
    assert result.bias.high - result.bias.low == pytest.approx(expected_width, rel=0.15)
    assert result.bias.n == 40
    assert result.num_roots == 160


def test_a_large_common_return_does_not_cancel(make_artefact):
    small = return_agreement(with_returns(make_artefact, [1.0, 2, 3, 4], [2.0, 2, 4, 8]), generator=0)
    offset = 1e6
    large = return_agreement(
        with_returns(make_artefact, np.array([1.0, 2, 3, 4]) + offset, np.array([2.0, 2, 4, 8]) + offset), generator=0
    )
    assert large.slope.estimate == pytest.approx(small.slope.estimate, rel=1e-6)
    assert large.bias.estimate == pytest.approx(-1.5, rel=1e-6)


def test_what_does_not_vary_has_no_slope(make_artefact):
    constant = return_agreement(with_returns(make_artefact, [0.3, 0.3, 0.3], [0.0, 1.0, 1.0]), generator=0)
    assert constant.slope is None
    assert constant.pearson is None
    assert constant.spearman is None
    assert constant.kendall is None
    assert constant.bias.estimate == pytest.approx(0.3 - 2 / 3)
    # With one of them left out nothing varies any more, so an interval cannot be told.
    barely = return_agreement(with_returns(make_artefact, [0.3, 0.3, 0.4], [0.0, 1.0, 1.0]), generator=0)
    assert barely.slope is None


def test_nothing_known(make_artefact):
    artefact = make_artefact([None])
    assert not known_roots(artefact).any()
    result = return_agreement(artefact, generator=0)
    assert (result.bias, result.slope, result.pearson, result.spearman, result.num_roots) == (None, None, None, None, 0)


def test_spearman_sees_monotone_relations():
    x = np.array([1.0, 5.0, 2.0, 10.0])
    assert spearman(x, np.exp(x)) == pytest.approx(1.0)
    assert spearman(x, -(x**3)) == pytest.approx(-1.0)
    assert spearman(x[:1], x[:1]) is None


def test_kendall_counts_pairs():
    """Pair by pair, with ties in both."""
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 6, size=(2, 60)).astype(np.float64)
    agree = disagree = untied_x = untied_y = 0
    for i in range(60):
        for j in range(i):
            order = np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])
            agree, disagree = agree + (order > 0), disagree + (order < 0)
            untied_x, untied_y = untied_x + (x[i] != x[j]), untied_y + (y[i] != y[j])
    assert kendall(x, y) == pytest.approx((agree - disagree) / np.sqrt(untied_x * untied_y))
    assert kendall(x, x) == pytest.approx(1)
    assert kendall(x, -x) == pytest.approx(-1)
    assert kendall(x[:1], y[:1]) is None
