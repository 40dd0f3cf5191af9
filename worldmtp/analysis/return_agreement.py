"""Imagined against realized return, at the same roots.

A realized return is one sample of what the policy could have got, so even a perfect imagination correlates below one
with it; slope and bias do not suffer from that: both are right (1 and 0) for any unbiased imagination.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from worldmtp.analysis.artefacts import EvalArtefact
from worldmtp.statistics import Interval, sums_interval


@dataclass(frozen=True)
class ReturnAgreement:
    """How imagined and realized returns go together; an entry is None where it is undefined (nothing varies).

    ``bias`` is the mean of imagined - realized, ``slope`` that of the regression of realized on imagined, intervals
    resample sequences. ``bias`` is the optimism; a sequence is a held-out prompt. ``spearman`` gives tied values their
    mean rank; ``kendall`` is tau-b, of pairs in one order less those in the other.
    """

    bias: Interval | None
    slope: Interval | None
    pearson: Interval | None
    spearman: float | None
    kendall: float | None
    num_roots: int
    num_sequences: int


def return_agreement(artefact: EvalArtefact, *, generator: np.random.Generator | int) -> ReturnAgreement:
    """Return the agreement over the roots where both returns are known."""
    known = known_roots(artefact)
    num_sequences = int(known.any(axis=1).sum())
    generator = np.random.default_rng(generator)
    sums = _moments(artefact, known)

    def interval(
        statistic: Callable[[Float[np.ndarray, "resample moment"]], Float[np.ndarray, " resample"]],
    ) -> Interval | None:
        if num_sequences < 2:
            return None
        # Undefined where nothing varies, be it only with one sequence left out.
        totals = np.concatenate([sums.sum(axis=0, keepdims=True), sums.sum(axis=0) - sums])
        if not np.all(np.isfinite(statistic(totals))):
            return None
        return sums_interval(sums, statistic, generator=generator, num_resamples=2000)

    imagined, realized = (
        returns[known].astype(np.float64) for returns in (artefact.imagined_return, artefact.realized_return)
    )
    return ReturnAgreement(
        bias=interval(_bias),
        slope=interval(_slope),
        pearson=interval(_pearson),
        spearman=spearman(imagined, realized),
        kendall=kendall(imagined, realized),
        num_roots=int(known.sum()),
        num_sequences=num_sequences,
    )


def known_roots(artefact: EvalArtefact) -> Bool[np.ndarray, "batch length"]:
    """Return the roots where both the imagined and the realized return were computed."""
    return np.isfinite(artefact.imagined_return) & np.isfinite(artefact.realized_return)


def spearman(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> float | None:
    """Return Spearman's rank correlation; None where one of the two does not vary."""
    if len(np.unique(first)) < 2 or len(np.unique(second)) < 2:
        return None
    from scipy.stats import spearmanr  # here: its import takes a second

    return float(spearmanr(first, second).statistic)


def kendall(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> float | None:
    """Return Kendall's tau-b (Kendall 1945, https://doi.org/10.1093/biomet/33.3.239); None where one does not vary."""
    if len(np.unique(first)) < 2 or len(np.unique(second)) < 2:
        return None
    from scipy.stats import kendalltau

    return float(kendalltau(first, second, variant="b").statistic)


def _moments(artefact: EvalArtefact, known: Bool[np.ndarray, "batch length"]) -> Float[np.ndarray, "sequence 8"]:
    """Return n, sum x, sum y, sum xx, sum yy, sum xy and the two means times n, per sequence (imagined x, realized y).

    Both are centred on their means over all roots: the moments of small spreads around a large return would cancel.
    """
    used = known.any(axis=1)
    imagined = np.where(known, artefact.imagined_return, 0.0).astype(np.float64)[used]
    realized = np.where(known, artefact.realized_return, 0.0).astype(np.float64)[used]
    weight = known[used].astype(np.float64)
    total = max(1.0, weight.sum())
    means = imagined.sum() / total, realized.sum() / total
    x, y = (imagined - means[0]) * weight, (realized - means[1]) * weight
    columns = [weight, x, y, x * x, y * y, x * y, weight * means[0], weight * means[1]]
    return np.stack([column.sum(axis=1) for column in columns], axis=1)


def _bias(totals: Float[np.ndarray, "resample moment"]) -> Float[np.ndarray, " resample"]:
    n, x, y, mean_x, mean_y = (totals[:, place] for place in (0, 1, 2, 6, 7))
    return _divide(x + mean_x - y - mean_y, n)


def _slope(totals: Float[np.ndarray, "resample moment"]) -> Float[np.ndarray, " resample"]:
    covariance, variance_x, _ = _second_moments(totals)
    return _divide(covariance, variance_x)


def _pearson(totals: Float[np.ndarray, "resample moment"]) -> Float[np.ndarray, " resample"]:
    covariance, variance_x, variance_y = _second_moments(totals)
    return _divide(covariance, np.sqrt(variance_x * variance_y))


def _second_moments(
    totals: Float[np.ndarray, "resample moment"],
) -> tuple[Float[np.ndarray, " resample"], Float[np.ndarray, " resample"], Float[np.ndarray, " resample"]]:
    """Return n times covariance and variances; a spread at rounding level is none."""
    n, x, y, xx, yy, xy = (totals[:, place] for place in range(6))
    variance_x, variance_y = xx - x * x / n, yy - y * y / n
    return (
        xy - x * y / n,
        np.where(variance_x > 1e-18 * (n + totals[:, 6] ** 2 / n), variance_x, 0.0),
        np.where(variance_y > 1e-18 * (n + totals[:, 7] ** 2 / n), variance_y, 0.0),
    )


def _divide(
    numerator: Float[np.ndarray, " resample"], denominator: Float[np.ndarray, " resample"]
) -> Float[np.ndarray, " resample"]:
    """Return the quotient; NaN over zero."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)
