"""Interquartile means and probabilities of improvement: by hand, by scipy, and how often intervals hold the truth."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from worldmtp.analysis.over_seeds import interquartile_mean, probability_of_improvement


def seeds(*values):
    return {"task": np.array(values, dtype=np.float64)}


def test_the_middle_half_by_hand():
    """Of eight scores two are cut at either end: (2 + 3 + 4 + 5) / 4; an outlier is no more than a large one."""
    assert interquartile_mean(seeds(0, 1, 2, 3, 4, 5, 6, 7), generator=0).estimate == 3.5
    assert interquartile_mean(seeds(0, 1, 2, 3, 4, 5, 6, 7e9), generator=0).estimate == 3.5
    # Five scores: a quarter of five is one, in whole numbers.
    assert interquartile_mean(seeds(9, 1, 2, 3, -5), generator=0).estimate == 2.0
    # Tasks are one heap.
    both = {"a": np.array([0.0, 1, 2, 3]), "b": np.array([4.0, 5, 6, 7])}
    assert interquartile_mean(both, generator=0).estimate == 3.5


def test_who_wins_pair_by_pair():
    """Of 3 x 2 pairs the second wins (5 > 1, 5 > 2, 2 > 1) and ties one of the rest."""
    found = probability_of_improvement(seeds(1, 2, 9), seeds(5, 2), generator=0)
    assert found.estimate == pytest.approx((3 + 0.5) / 6)
    swapped = probability_of_improvement(seeds(5, 2), seeds(1, 2, 9), generator=0)
    assert swapped.estimate == pytest.approx(1 - 3.5 / 6)
    # A mean over tasks: a sure win and a sure loss.
    first = {"a": np.zeros(3), "b": np.ones(3)}
    second = {"b": np.zeros(3), "a": np.ones(3)}
    assert probability_of_improvement(first, second, generator=0).estimate == 0.5


def test_it_is_the_mann_whitney_u():
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 9, size=(2, 12)).astype(np.float64)
    expected = mannwhitneyu(second, first).statistic / 144
    assert probability_of_improvement(seeds(*first), seeds(*second), generator=0).estimate == pytest.approx(expected)


def test_few_seeds_have_no_interval_and_say_so():
    few = interquartile_mean(seeds(1, 2, 3, 4), generator=0)
    assert few.interval is None
    assert str(few) == "2.500 (no interval below 5 seeds)"
    assert interquartile_mean(seeds(1, 2, 3, 4, 5), generator=0).interval is not None
    assert probability_of_improvement(seeds(1, 2, 3, 4, 5), seeds(1, 2, 3, 4), generator=0).interval is None


def test_seeds_are_resampled_within_their_tasks():
    """Two tasks whose seeds are alike within and far apart between: no resample moves anything."""
    found = interquartile_mean({"a": np.zeros(6), "b": np.full(6, 10.0)}, generator=0)
    assert (found.interval.low, found.interval.high) == (5.0, 5.0)
    assert (found.interval.unit, found.interval.method, found.interval.n) == ("seed", "stratified bootstrap", 12)


def test_equal_arms_are_held_equal_about_as_often_as_said():
    """200 pairs of arms of ten normal seeds: a nominal 90 % bootstrap of ten covers about 85 %."""
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        first, second = generator.normal(size=(2, 10))
        interval = probability_of_improvement(seeds(*first), seeds(*second), generator=2).interval
        held += interval.low <= 0.5 <= interval.high
    assert held / 200 > 0.78  # below the least by chance with 1 in 100 at a true 85 %


def test_bad_scores_are_refused():
    with pytest.raises(ValueError, match=r"first has the tasks \['task'\], second \['other'\]; compare arms"):
        probability_of_improvement(seeds(1), {"other": np.ones(1)}, generator=0)
    with pytest.raises(ValueError, match=r"scores\['task'\] is \[1.0, nan\]; expected a finite score for each seed"):
        interquartile_mean(seeds(1, float("nan")), generator=0)
    with pytest.raises(ValueError, match="scores has no task"):
        interquartile_mean({}, generator=0)
