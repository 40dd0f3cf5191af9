"""Intervals: known answers, reductions and coverage."""

import math

import numpy as np
import pytest

from worldmtp.statistics import (
    Interval,
    bootstrap_interval,
    noise_ceiling,
    paired_difference,
    paired_ratio_difference,
    ratio_interval,
    sums_interval,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("level", "n", "quantile"),
    # Student's table, e.g. Abramowitz & Stegun 1964, table 26.10, at (1 + level) / 2 and n - 1 degrees of freedom;
    # one degree is Cauchy: tan(pi (p - 1/2)), here tan(.45 pi).
    [
        (0.9, 2, math.tan(math.pi * 0.45)),
        (0.9, 3, 2.920),
        (0.9, 5, 2.132),
        (0.95, 4, 3.182),
        (0.95, 9, 2.306),
        (0.8, 8, 1.415),
    ],
)
def test_half_widths_are_students_quantiles_times_the_standard_error(level, n, quantile):
    values = np.arange(n, dtype=np.float64)
    # The sample variance of 0 .. n - 1 is n (n + 1) / 12, so the squared error of the mean is (n + 1) / 12.
    half_width = quantile * math.sqrt((n + 1) / 12)
    interval = bootstrap_interval(values, level=level, generator=0)
    assert interval.high - interval.estimate == pytest.approx(half_width, rel=3e-4)
    assert interval.estimate - interval.low == pytest.approx(half_width, rel=3e-4)


def test_small_samples_get_the_textbook_t_interval():
    # mean 2, sample variance ((-1)^2 + 0 + 1^2) / 2 = 1, standard error 1 / sqrt(3), t_{.95, 2} = 2.92.
    interval = bootstrap_interval(np.array([1.0, 2.0, 3.0]), generator=0, unit="seed")
    assert interval.estimate == 2.0
    assert interval.high - 2.0 == pytest.approx(2.92 / math.sqrt(3), abs=2e-3)
    assert 2.0 - interval.low == pytest.approx(2.92 / math.sqrt(3), abs=2e-3)
    assert (interval.method, interval.unit, interval.n, interval.level) == ("jackknife t", "seed", 3, 0.9)


def test_ten_values_are_bootstrapped_reproducibly_without_the_global_generator():
    values = np.arange(10.0)
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - it must stay as it is
    first = bootstrap_interval(values, generator=3)
    assert first == bootstrap_interval(values, generator=np.random.default_rng(3))
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert first.method == "percentile bootstrap"
    # The bootstrap mean has variance (population variance 8.25) / 10; ±1.645 sd = ±1.494 around 4.5.
    assert first.low == pytest.approx(4.5 - 1.494, abs=0.1)
    assert first.high == pytest.approx(4.5 + 1.494, abs=0.1)


def test_constant_values_have_a_degenerate_interval():
    interval = bootstrap_interval(np.full(12, 0.25), generator=0)
    assert interval.low == pytest.approx(0.25, abs=1e-12)
    assert interval.high == pytest.approx(0.25, abs=1e-12)


def test_boolean_and_integer_values_are_accepted():
    assert bootstrap_interval(np.array([True, False]), generator=0).estimate == 0.5
    assert bootstrap_interval(np.array([1, 2]), generator=0).estimate == 1.5


def test_bootstrap_covers_the_mean():
    """400 samples of 20 normals; true coverage of the nominal 90 % interval is about .88.

    False alarm: the count is Binomial(400, .88); P(below .82 or above .94) < 4e-4 (3.7 standard deviations). The seed
    is fixed, so it passes or fails once and for all.
    """
    generator = np.random.default_rng(0)
    samples = generator.normal(size=(400, 20))
    intervals = [bootstrap_interval(sample, num_resamples=400, generator=generator) for sample in samples]
    coverage = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert 0.82 < coverage < 0.94


def test_t_interval_covers_where_a_bootstrap_would_not():
    """600 samples of 4 normals, exact coverage .90. False alarm: P(|count - 540| > 27) < 3e-4 (3.7 sd)."""
    generator = np.random.default_rng(1)
    samples = generator.normal(size=(600, 4))
    intervals = [bootstrap_interval(sample, generator=generator) for sample in samples]
    coverage = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert 0.855 < coverage < 0.945


def test_sequences_not_tokens_are_resampled():
    # 20 sequences of 50 identical tokens, half of them ones: over tokens the interval would be sqrt(50) narrower.
    numerators = np.array([50.0, 0.0] * 10)
    interval = ratio_interval(numerators, np.full(20, 50), generator=0)
    assert interval.n == 20
    # sd of a mean of 20 fair coins = .1118; ±1.645 sd = ±.184.
    assert interval.high - interval.low == pytest.approx(0.368, abs=0.06)


def test_ratio_weighs_by_the_denominator_and_leaves_empty_units_out():
    # (1 + 3) / (2 + 4) = 2/3; the third unit has nothing to average.
    interval = ratio_interval(np.array([1.0, 3.0, 0.0]), np.array([2, 4, 0]), generator=0)
    assert interval.estimate == pytest.approx(2 / 3)
    assert interval.n == 2


def test_sums_interval_of_a_slope():
    # y = 2 x exactly: every resample with two distinct x has slope 2, so the interval has no width.
    x = np.arange(12.0)
    y = 2 * x
    sums = np.stack([np.ones(12), x, y, x * x, x * y], axis=1)

    def slope(totals):
        n, sum_x, sum_y, sum_xx, sum_xy = totals.T
        return (n * sum_xy - sum_x * sum_y) / (n * sum_xx - sum_x**2)

    interval = sums_interval(sums, slope, num_resamples=300, generator=0)
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((2.0, 2.0, 2.0))


def test_paired_difference_uses_the_pairing():
    # Values spread over 0..100 in no order, but each pair differs by exactly 1: only a paired interval has no width.
    second = np.random.default_rng(0).permutation(np.linspace(0, 100, 15))
    interval = paired_difference(second + 1, second, generator=0)
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"first has 3 values and second 2"):
        paired_difference(np.ones(3), np.ones(2), generator=0)


def test_wilson_matches_hand_worked_answers():
    # 0 of 10 at z = 1.6449: low 0, high = (z^2/n) / (1 + z^2/n) = .27055 / 1.27055 = .21294.
    interval = wilson_interval(0, 10)
    assert interval.low == 0.0
    assert interval.high == pytest.approx(0.21294, abs=1e-4)
    # 5 of 10: centre .5, half width z sqrt(.025 + z^2/400) / (1 + z^2/10) = 1.6449 * .17823 / 1.27055 = .23074.
    interval = wilson_interval(5, 10)
    assert interval.low == pytest.approx(0.5 - 0.23074, abs=1e-4)
    assert interval.high == pytest.approx(0.5 + 0.23074, abs=1e-4)
    assert wilson_interval(10, 10).high == 1.0


def test_errors_name_the_value_and_the_cure():
    with pytest.raises(ValueError, match=r"Got 1 independent seed\(s\); an interval needs at least 2"):
        bootstrap_interval(np.array([1.0]), generator=0, unit="seed")
    with pytest.raises(ValueError, match=r"values has 1 entries that are not finite, the first at flat index 1"):
        bootstrap_interval(np.array([1.0, np.nan]), generator=0)
    with pytest.raises(ValueError, match=r"level=90.0; a confidence level lies inside \(0, 1\)"):
        bootstrap_interval(np.arange(3.0), level=90.0, generator=0)
    with pytest.raises(ValueError, match=r"num_successes=11 of n=10"):
        wilson_interval(11, 10)
    with pytest.raises(ValueError, match=r"low=2.0 above high=1.0"):
        Interval(1.5, 2.0, 1.0, 0.9, "seed", "t", 3)
    with pytest.raises(ValueError, match=r"negative entries"):
        ratio_interval(np.ones(2), np.array([1.0, -1.0]), generator=0)


def test_intervals_of_the_default_unit_cover_what_they_say():
    """A chain's share of ones, 40 texts of 32 tokens each: sequences cover >= .87 of a nominal .90, tokens far less.

    Tokens stay with .9, so that a text is worth few independent ones; the truth is 1/2 by symmetry. 400 data sets: the
    true coverage is about .89, so fewer than .87 would be 348 of 400, 1.3 deviations below; the seed is fixed.
    """
    generator = np.random.default_rng(4)
    by_sequence = by_token = 0
    for sample in range(400):
        turns = generator.random((40, 32)) < np.where(np.arange(32) == 0, 0.5, 0.1)
        texts = turns.cumsum(axis=1) % 2
        interval = ratio_interval(texts.sum(axis=1), np.full(40, 32), num_resamples=400, generator=generator)
        by_sequence += interval.low <= 0.5 <= interval.high
        if sample % 8 == 0:
            interval = bootstrap_interval(texts.ravel(), num_resamples=100, generator=generator, unit="token")
            by_token += interval.low <= 0.5 <= interval.high
    assert by_sequence / 400 >= 0.87
    assert by_token / 50 < 0.6


def test_a_paired_difference_of_ratios_is_that_of_means_where_all_weigh_one():
    values = np.random.default_rng(3).normal(size=(2, 40))
    ones = np.ones(40)
    found = paired_ratio_difference((values[0], ones), (values[1], ones), generator=5)
    expected = paired_difference(values[0], values[1], generator=5)
    np.testing.assert_allclose(
        (found.estimate, found.low, found.high), (expected.estimate, expected.low, expected.high), atol=1e-12
    )
    assert (found.unit, found.n) == ("prompt", 40)


def test_a_paired_difference_of_ratios_weighs_by_count_and_leaves_out_what_counts_nothing():
    # (1 + 3) / (1 + 3) - (0 + 1) / (1 + 1); the third unit holds nothing.
    first = (np.array([1.0, 3.0, 9.0]), np.array([1, 3, 0]))
    second = (np.array([0.0, 1.0, 9.0]), np.array([1, 1, 0]))
    found = paired_ratio_difference(first, second, generator=0)
    assert (found.estimate, found.n) == (0.5, 2)
    with pytest.raises(ValueError, match=r"Got \[3, 3, 2, 2\] values; a paired comparison needs the same prompts"):
        paired_ratio_difference(first, (np.ones(2), np.ones(2)), generator=0)


# ---------------------------------------------------------------------------------------------------------------------
# Noise ceiling
# ---------------------------------------------------------------------------------------------------------------------


def test_a_noise_ceiling_by_hand():
    """Means 0, 2, 4 and within each two draws 1 off the mean: MSB = 2 * 4, MSW = 2, so rho = (8 - 2) / (8 + 2)."""
    draws = np.array([[-1.0, 1.0], [1.0, 3.0], [3.0, 5.0]])
    found = noise_ceiling(draws, generator=0)
    assert found is not None
    assert found.estimate == pytest.approx(math.sqrt(0.6))
    assert (found.n, found.unit) == (3, "prompt")
    shifted = noise_ceiling(draws + 1e6, generator=0)
    assert shifted is not None
    assert shifted.estimate == pytest.approx(found.estimate)


def test_who_knows_all_means_correlates_as_the_ceiling_says():
    """Beta(2, 2) chances of a single payment: Var V = 1/20 and E Var(G|s) = 1/5, so sqrt(1/5) with one draw."""
    generator = np.random.default_rng(0)
    value = generator.beta(2, 2, size=4000)
    draws = (generator.random((4000, 4)) < value[:, None]).astype(float)
    found = noise_ceiling(draws, generator=0)
    assert found is not None
    assert found.low < math.sqrt(0.2) < found.high  # seen once; false with a tenth
    assert found.high - found.low < 0.05
    assert np.corrcoef(value, draws[:, 0])[0, 1] == pytest.approx(math.sqrt(0.2), abs=0.04)


def test_a_noise_ceiling_without_noise_or_without_means():
    alike = np.repeat(np.array([[0.0], [1.0], [5.0]]), 3, axis=1)
    found = noise_ceiling(alike, generator=0)
    assert found is not None
    assert found.estimate == pytest.approx(1)
    # The units' means are equal, and less spread than draws of one law would make them: there is nothing to know.
    nothing = noise_ceiling(np.array([[-1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]]), generator=0)
    assert nothing is not None
    assert nothing.estimate == 0
    assert noise_ceiling(np.ones((4, 2)), generator=0) is None
    with pytest.raises(ValueError, match=r"4 prompt\(s\) with 1 draw\(s\) each; a reliability needs 2 of both"):
        noise_ceiling(np.ones((4, 1)), generator=0)
