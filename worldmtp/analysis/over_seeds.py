"""Arms that were run with several seeds: interquartile means, and how probable it is that one improves on another.

Agarwal et al. 2021, https://arxiv.org/abs/2108.13264. Scores come by task, each a number a seed. What is resampled is
the seed within its task, of each arm by itself (a stratified bootstrap): seeds of two arms have nothing in common,
unless somebody saw to it. Where they do, a paired difference (``worldmtp.statistics.paired_difference``) is narrower.

Fewer than five seeds have no interval: a bootstrap over three covers 61 % where it says 90 %. Then every seed is shown.
Left out: performance profiles, and scores that are normalised over tasks, which is the caller's business.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from worldmtp.statistics import Interval

MIN_SEEDS = 5
"""Seeds of a task below which nothing is said of others."""

_LEVEL, _NUM_RESAMPLES = 0.9, 2000

Scores = Mapping[str, Float[np.ndarray, " _"]]
"""A number for each seed, by task."""


@dataclass(frozen=True)
class SeedEstimate:
    """A number over seeds; ``interval`` is None where a task has fewer than five."""

    estimate: float
    interval: Interval | None

    def __str__(self) -> str:
        return str(self.interval) if self.interval is not None else f"{self.estimate:.3f} (no interval below 5 seeds)"


def interquartile_mean(scores: Scores, *, generator: np.random.Generator | int) -> SeedEstimate:
    """Return the mean of the middle half of all scores, of all tasks together: a quarter is cut at either end.

    Raises:
        ValueError: there is no task, or one without a seed, or a score that is not finite.
    """
    from scipy.stats import trim_mean  # here: its import takes a second

    def statistic(drawn: tuple[np.ndarray, ...]) -> np.ndarray:
        return np.asarray(trim_mean(np.concatenate(drawn, axis=-1), 0.25, axis=-1))

    return _estimate(statistic, [_checked("scores", scores)], generator)


def probability_of_improvement(first: Scores, second: Scores, *, generator: np.random.Generator | int) -> SeedEstimate:
    """Return P(second > first) + P(equal) / 2 of a random seed of each, a mean over tasks; 0.5 says nothing.

    It is the Mann-Whitney U of the two over the number of pairs.

    Raises:
        ValueError: the two are of different tasks, or as ``interquartile_mean``.
    """
    if set(first) != set(second):
        raise ValueError(
            f"first has the tasks {sorted(first)}, second {sorted(second)}; compare arms on the same tasks."
        )
    in_order = [
        _checked(name, {task: scores[task] for task in first})
        for name, scores in (("first", first), ("second", second))
    ]

    def statistic(drawn: tuple[np.ndarray, ...]) -> np.ndarray:
        tasks = len(first)
        won = []
        for one, other in zip(drawn[:tasks], drawn[tasks:], strict=True):
            difference = other[..., :, None] - one[..., None, :]
            won.append(((difference > 0) + 0.5 * (difference == 0)).mean(axis=(-2, -1)))
        return np.asarray(np.mean(won, axis=0))

    return _estimate(statistic, in_order, generator)


def _estimate(
    statistic: Callable[[tuple[np.ndarray, ...]], np.ndarray],
    arms: list[list[np.ndarray]],
    generator: np.random.Generator | int,
) -> SeedEstimate:
    groups = [values for arm in arms for values in arm]
    estimate = float(statistic(tuple(groups)))
    if min(map(len, groups)) < MIN_SEEDS:
        return SeedEstimate(estimate, None)
    generator = np.random.default_rng(generator)
    drawn = tuple(values[generator.integers(len(values), size=(_NUM_RESAMPLES, len(values)))] for values in groups)
    low, high = (float(end) for end in np.quantile(statistic(drawn), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]))
    num_seeds = sum(map(len, groups))
    return SeedEstimate(estimate, Interval(estimate, low, high, _LEVEL, "seed", "stratified bootstrap", num_seeds))


def _checked(name: str, scores: Scores) -> list[np.ndarray]:
    if not scores:
        raise ValueError(f"{name} has no task; give it at least one, with a score for each seed.")
    for task, values in scores.items():
        if len(values) == 0 or not np.isfinite(values).all():
            raise ValueError(
                f"{name}[{task!r}] is {values.tolist()}; expected a finite score for each seed, at least one."
            )
    return [np.asarray(values, dtype=np.float64) for values in scores.values()]
