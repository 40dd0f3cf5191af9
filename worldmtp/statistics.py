"""Intervals and paired comparisons for small experiments; numpy and scipy, no model.

What is resampled is the independent unit (a sequence, a prompt, a seed), never a token: a bootstrap over the tokens of
40 correlated sequences covers a nominal 90 % interval about 40 % of the time. From ten units on, intervals are
percentile bootstraps; below ten those are too narrow (61 % coverage at n = 3), so the interval is Student's t on the
jackknife, which for a mean is the textbook t interval. The result says which of the two it is.

scipy.stats is imported at its first use, since its import takes a second. Its own bootstrap is not used: it resamples
the units themselves, not sums over them, so a ratio of 10,000 resamples would cost 10,000 times the data.

Left out: BCa intervals and two-level (seed, then prompt) resampling.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Real

Sample = Real[np.ndarray, " n"] | Bool[np.ndarray, " n"]
"""One number for each independent unit."""
OtherSample = Real[np.ndarray, " n_second"] | Bool[np.ndarray, " n_second"]
"""Another one, whose length is checked with a message of its own."""

MIN_BOOTSTRAP_UNITS = 10
_ELEMENTS_PER_CHUNK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval: of what unit, by what method, from how many units."""

    estimate: float
    low: float
    high: float
    level: float
    unit: str
    method: str
    n: int

    def __post_init__(self) -> None:
        _check_level(self.level)
        if self.low > self.high:
            raise ValueError(f"Interval with low={self.low} above high={self.high}; swap the two ends.")

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_interval(
    values: Sample,
    *,
    level: float = 0.9,
    num_resamples: int = 10_000,
    generator: np.random.Generator | int,
    unit: str = "sequence",
) -> Interval:
    """Return the interval of the mean of ``values``.

    Percentile bootstrap (Efron & Tibshirani 1993, ch. 13) from ten values on, Student's t below.

    Raises:
        ValueError: fewer than two values, or one that is not finite.
    """
    _check_finite("values", values)
    return sums_interval(
        np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=1),
        _ratio_of_sums,
        level=level,
        num_resamples=num_resamples,
        generator=generator,
        unit=unit,
    )


def ratio_interval(
    numerators: Sample,
    denominators: Sample,
    *,
    level: float = 0.9,
    num_resamples: int = 10_000,
    generator: np.random.Generator | int,
    unit: str = "sequence",
) -> Interval:
    """Return the interval of sum(numerators) / sum(denominators), the two resampled together.

    That is a per-token mean whose independent unit is the sequence: pass each sequence's sum and its token count.
    Units with a zero denominator hold nothing to average and are left out, so ``n`` counts the others.

    Raises:
        ValueError: fewer than two units with a positive denominator, or a value that is not finite.
    """
    _check_finite("numerators", numerators)
    _check_finite("denominators", denominators)
    if np.any(np.asarray(denominators) < 0):
        raise ValueError("denominators has negative entries; pass counts or weights.")
    used = np.asarray(denominators) > 0
    sums = np.stack([numerators, denominators], axis=1).astype(np.float64)[used]
    return sums_interval(sums, _ratio_of_sums, level=level, num_resamples=num_resamples, generator=generator, unit=unit)


def sums_interval(
    sums: Float[np.ndarray, "n moment"],
    statistic: Callable[[Float[np.ndarray, "resample moment"]], Float[np.ndarray, " resample"]],
    *,
    level: float = 0.9,
    num_resamples: int = 10_000,
    generator: np.random.Generator | int,
    unit: str = "sequence",
) -> Interval:
    """Return the interval of ``statistic(total of sums over units)``, for statistics that need only totals.

    Each unit brings one row of sums; ``statistic`` maps totals to numbers, many totals at a time. Means, ratios,
    regression slopes and correlations are of this kind, and a resample costs one row of a matrix product.

    Raises:
        ValueError: fewer than two units, a sum that is not finite, or a statistic undefined on the data.
    """
    _check_level(level)
    _check_finite("sums", sums)
    n = len(sums)
    if n < 2:
        raise ValueError(f"Got {n} independent {unit}(s); an interval needs at least 2. Report the value itself.")
    estimate = float(statistic(sums.sum(axis=0, keepdims=True))[0])
    if not math.isfinite(estimate):
        raise ValueError(f"The statistic is {estimate} on these {n} {unit}(s); it is undefined there, so no interval.")
    if n < MIN_BOOTSTRAP_UNITS:
        low, high = _jackknife_t(sums, statistic, estimate, level)
        method = "jackknife t"
    else:
        low, high = _percentile_bootstrap(sums, statistic, level, num_resamples, np.random.default_rng(generator))
        method = "percentile bootstrap"
    return Interval(estimate=estimate, low=low, high=high, level=level, unit=unit, method=method, n=n)


def paired_difference(
    first: Sample,
    second: OtherSample,
    *,
    level: float = 0.9,
    num_resamples: int = 10_000,
    generator: np.random.Generator | int,
    unit: str = "sequence",
) -> Interval:
    """Return the interval of the mean of ``first - second``; entry i of both is the same prompt, or the same seed.

    Raises:
        ValueError: the two differ in length.
    """
    if len(first) != len(second):
        raise ValueError(
            f"first has {len(first)} values and second {len(second)}; a paired comparison needs the same {unit}s, "
            "in the same order, in both."
        )
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return bootstrap_interval(difference, level=level, num_resamples=num_resamples, generator=generator, unit=unit)


def paired_ratio_difference(
    first: tuple[Sample, Sample],
    second: tuple[OtherSample, OtherSample],
    *,
    level: float = 0.9,
    num_resamples: int = 10_000,
    generator: np.random.Generator | int,
    unit: str = "prompt",
) -> Interval:
    """Return the interval of sum(n1) / sum(d1) - sum(n2) / sum(d2), all four resampled together.

    Each argument is numerators and denominators, entry i of all four of the same unit. Units whose denominators are
    both zero are left out.

    Raises:
        ValueError: the four differ in length, fewer than two units are left, or a denominator sums to zero.
    """
    columns = [np.asarray(column, dtype=np.float64) for column in (*first, *second)]
    if len({len(column) for column in columns}) != 1:
        raise ValueError(
            f"Got {[len(column) for column in columns]} values; a paired comparison needs the same {unit}s, in the "
            "same order, in all of them."
        )
    sums = np.stack(columns, axis=1)
    sums = sums[(sums[:, 1] > 0) | (sums[:, 3] > 0)]

    def difference(totals: Float[np.ndarray, "resample moment"]) -> Float[np.ndarray, " resample"]:
        with np.errstate(invalid="ignore", divide="ignore"):  # nothing counted in a resample says nothing
            return totals[:, 0] / totals[:, 1] - totals[:, 2] / totals[:, 3]

    return sums_interval(sums, difference, level=level, num_resamples=num_resamples, generator=generator, unit=unit)


def noise_ceiling(
    repeats: Float[np.ndarray, "unit repeat"],
    *,
    level: float = 0.9,
    num_resamples: int = 2000,
    generator: np.random.Generator | int,
    unit: str = "prompt",
) -> Interval | None:
    """Return the largest correlation with one draw of each unit that anybody can have, from repeated draws.

    A draw is the unit's mean and noise, so who knows all means correlates sqrt(rho) with single draws, where rho is
    their reliability, the share of the draws' variance that is the units' own. By one-way analysis of variance with R
    draws a unit (Shrout & Fleiss 1979, ICC(1,1), https://doi.org/10.1037/0033-2909.86.2.420):

        rho = (MSB - MSW) / (MSB + (R - 1) MSW),     0 where that is negative

    None where all draws are alike, be it only with one unit left out.

    Raises:
        ValueError: fewer than two units or draws, or a value that is not finite.
    """
    if noise_ceiling_estimate(repeats, unit=unit) is None:
        return None
    sums, ceiling = _ceiling_of(repeats)
    return sums_interval(sums, ceiling, level=level, num_resamples=num_resamples, generator=generator, unit=unit)


def noise_ceiling_estimate(repeats: Float[np.ndarray, "unit repeat"], *, unit: str = "prompt") -> float | None:
    """Return the estimate of ``noise_ceiling`` alone, which resamples nothing.

    Raises:
        ValueError: as there.
    """
    _check_finite("repeats", repeats)
    num_units, num_repeats = repeats.shape
    if num_units < 2 or num_repeats < 2:
        raise ValueError(f"{num_units} {unit}(s) with {num_repeats} draw(s) each; a reliability needs 2 of both.")
    sums, ceiling = _ceiling_of(repeats)
    whole = sums.sum(axis=0, keepdims=True)
    found = ceiling(np.concatenate([whole, whole - sums])) if num_units > 2 else np.array([np.nan])
    return float(found[0]) if np.isfinite(found).all() else None


def _ceiling_of(
    repeats: Float[np.ndarray, "unit repeat"],
) -> tuple[Float[np.ndarray, "unit 4"], Callable[[Float[np.ndarray, "resample 4"]], Float[np.ndarray, " resample"]]]:
    """Return sums of each unit, and the ceiling as a function of their totals."""
    num_units, num_repeats = repeats.shape
    values = np.asarray(repeats, dtype=np.float64) - np.mean(repeats)
    mean = values.mean(axis=1)
    within = ((values - mean[:, None]) ** 2).sum(axis=1)

    def ceiling(totals: Float[np.ndarray, "resample 4"]) -> Float[np.ndarray, " resample"]:
        n, first, second, inside = totals.T
        between = num_repeats * (second - first**2 / n) / (n - 1)
        noise = inside / (n * (num_repeats - 1))
        spread = between + (num_repeats - 1) * noise
        rho = np.divide(between - noise, spread, out=np.full_like(spread, np.nan), where=spread > 1e-18)
        return np.sqrt(np.maximum(rho, 0.0))

    return np.stack([np.ones(num_units), mean, mean**2, within], axis=1), ceiling


def wilson_interval(num_successes: int, n: int, *, level: float = 0.9, unit: str = "sequence") -> Interval:
    """Return the score interval of a proportion; sensible at 0 and at n successes, where a bootstrap has no width.

    With p = successes / n and z the normal quantile: (p + z^2/2n ± z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).
    Wilson 1927; Brown, Cai & DasGupta 2001, eq. 4, https://doi.org/10.1214/ss/1009213286.

    Raises:
        ValueError: no trials, or successes outside 0..n.
    """
    _check_level(level)
    if n < 1 or not 0 <= num_successes <= n:
        raise ValueError(f"num_successes={num_successes} of n={n}; need n >= 1 and successes in 0..n.")
    from scipy.stats import binomtest

    found = binomtest(num_successes, n).proportion_ci(level, method="wilson")
    estimate, low, high = num_successes / n, float(found.low), float(found.high)
    return Interval(estimate=estimate, low=low, high=high, level=level, unit=unit, method="Wilson score", n=n)


def _percentile_bootstrap(
    sums: Float[np.ndarray, "n moment"],
    statistic: Callable[[Float[np.ndarray, "resample moment"]], Float[np.ndarray, " resample"]],
    level: float,
    num_resamples: int,
    generator: np.random.Generator,
) -> tuple[float, float]:
    """Return both ends of the percentile interval; resamples are counts of units, so each is one matrix row."""
    n = len(sums)
    chunk = max(1, _ELEMENTS_PER_CHUNK // n)
    replicates = []
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        counts = generator.multinomial(n, np.full(n, 1 / n), size=size)
        replicates.append(statistic(counts.astype(np.float64) @ sums))
    resampled = np.concatenate(replicates)
    # A resample without variation has no slope or correlation; it says nothing and is left out.
    low, high = np.nanquantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _jackknife_t(
    sums: Float[np.ndarray, "n moment"],
    statistic: Callable[[Float[np.ndarray, "resample moment"]], Float[np.ndarray, " resample"]],
    estimate: float,
    level: float,
) -> tuple[float, float]:
    """Return estimate ± t_{n-1} * the jackknife's standard error (Efron & Tibshirani 1993, eq. 11.5)."""
    from scipy.stats import t

    n = len(sums)
    leave_one_out = statistic(sums.sum(axis=0) - sums)
    if not np.all(np.isfinite(leave_one_out)):
        raise ValueError(f"The statistic is undefined with one of the {n} units left out; collect more units.")
    standard_error = math.sqrt((n - 1) / n * np.sum((leave_one_out - leave_one_out.mean()) ** 2))
    half_width = float(t.ppf(0.5 + level / 2, n - 1)) * standard_error
    return estimate - half_width, estimate + half_width


def _ratio_of_sums(totals: Float[np.ndarray, "resample 2"]) -> Float[np.ndarray, " resample"]:
    return totals[:, 0] / totals[:, 1]


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level={level}; a confidence level lies inside (0, 1), for example 0.9.")


def _check_finite(name: str, values: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(np.asarray(values, dtype=np.float64)))
    if len(bad) > 0:
        raise ValueError(
            f"{name} has {len(bad)} entries that are not finite, the first at flat index {bad[0]}; decide what a "
            "missing value means before asking for an interval."
        )
