"""Predicted against realized tokens, per depth: everything that two log-probabilities per (token, depth) give.

On a realized path x drawn from the trunk p, with r_j = log q_j(x_{t+j}) - log p(x_{t+j} | x_{<t+j}) at root t:

    acceptance  alpha_k = E[min(1, e^{r_k})] = 1 - E[TV(p, q_k)]
    survival    S_k     = E[prod_{j<=k} min(1, e^{r_j})]          speculative drafts of length k kept whole
    wci         WCI_k   = E[min(1, e^{r_1 + ... + r_k})]          1 - TV of the k-token paths
    kl          KL_k    = -E[r_1 + ... + r_k]

so S_k <= WCI_k, and for any return in [a, b] of those k tokens |imagined - realized| <= (b - a)(1 - WCI_k). Leviathan
et al. 2023, https://arxiv.org/abs/2211.17192, for alpha; the identities hold only where x was drawn from p.

Left out: the structural gap apart from the head's error, which needs Monte Carlo marginals of the trunk.
"""

import numpy as np
from jaxtyping import Bool, Float

from worldmtp.analysis.rooted import DepthArray, RootedPredictions, SequenceSums
from worldmtp.statistics import Interval, sums_interval


def acceptance_probability(rooted: RootedPredictions) -> DepthArray:
    """min(1, q_k / p) of each token."""
    return np.exp(np.minimum(rooted.log_ratio, 0))


def acceptance(rooted: RootedPredictions) -> SequenceSums:
    """alpha_k."""
    return _sums(acceptance_probability(rooted), rooted.valid)


def survival(rooted: RootedPredictions) -> SequenceSums:
    """S_k."""
    return _sums(np.cumprod(acceptance_probability(rooted), axis=2), rooted.valid)


def path_consistency(rooted: RootedPredictions) -> SequenceSums:
    """WCI_k."""
    return _sums(np.exp(np.minimum(np.cumsum(rooted.log_ratio, axis=2), 0)), rooted.valid)


def path_divergence(rooted: RootedPredictions) -> SequenceSums:
    """KL_k, nats. A sample mean of it may be slightly negative."""
    return _sums(-np.cumsum(rooted.log_ratio, axis=2), rooted.valid)


def agreement(rooted: RootedPredictions) -> SequenceSums:
    """Top-1: whether the most probable predicted token is the realized one."""
    return _sums(rooted.agrees.astype(np.float64), rooted.valid)


def cross_entropy(rooted: RootedPredictions) -> SequenceSums:
    """-log q_k of the realized token, nats."""
    return _sums(rooted.cross_entropy, rooted.valid)


def chain_cross_entropy(rooted: RootedPredictions) -> SequenceSums:
    """-log p of the same tokens by the trunk one step ahead, nats: the floor of ``cross_entropy``."""
    return _sums(rooted.chain_cross_entropy, rooted.valid)


def gap(rooted: RootedPredictions) -> SequenceSums:
    """``cross_entropy`` less its floor: what is unknown k tokens ahead plus the error of the head, nats."""
    return _sums(-rooted.log_ratio, rooted.valid)


def prediction_entropy(rooted: RootedPredictions) -> SequenceSums:
    """Entropy of the head's prediction, nats."""
    return _sums(rooted.entropy, rooted.valid)


def effective_horizon(
    rooted: RootedPredictions, *, generator: np.random.Generator | int, level: float = 0.9, num_resamples: int = 2000
) -> Interval | None:
    """H_eff = sum_k S_k, drafted tokens kept per root; None if some depth is reached by fewer than two sequences.

    Each S_k is over the roots that reach depth k, so near the ends of texts the sum is of unlike roots.
    """
    sums = survival(rooted)
    if np.any((sums.count > 0).sum(axis=0) < 2):
        return None
    depths = sums.total.shape[1]
    used = sums.count[:, 0] > 0
    stacked = np.concatenate([sums.total[used], sums.count[used].astype(np.float64)], axis=1)

    def statistic(totals: Float[np.ndarray, "resample moment"]) -> Float[np.ndarray, " resample"]:
        count = totals[:, depths:]
        # A resample that no root of some depth is in says nothing of it.
        means = np.divide(totals[:, :depths], count, out=np.full_like(count, np.nan), where=count > 0)
        return means.sum(axis=1)

    return sums_interval(stacked, statistic, generator=generator, level=level, num_resamples=num_resamples)


def by_chain_entropy(
    rooted: RootedPredictions, values: DepthArray, num_bins: int = 4
) -> tuple[Float[np.ndarray, " edge"], tuple[SequenceSums, ...]]:
    """Edges and per-bin sums of ``values``, by the entropy of the trunk at the token spoken of.

    The inner edges are quantiles over all policy tokens that depth 1 speaks of; ties fall into the lower bin, so with
    a nearly deterministic policy a bin may be empty. Acceptance falls with this entropy whatever the head is worth,
    which is why the two are read together.
    """
    spoken_of = rooted.chain_entropy[:, :, 0][rooted.valid[:, :, 0]]
    if spoken_of.size == 0:
        raise ValueError("No root has a policy token ahead; the artefact holds nothing to stratify.")
    edges = np.quantile(spoken_of, np.linspace(0, 1, num_bins + 1))
    place = np.searchsorted(edges[1:-1], rooted.chain_entropy, side="left")
    return edges, tuple(_sums(values, rooted.valid & (place == chosen)) for chosen in range(num_bins))


def _sums(values: DepthArray, valid: Bool[np.ndarray, "batch length depth"]) -> SequenceSums:
    return SequenceSums(total=np.where(valid, values, 0.0).sum(axis=1), count=valid.sum(axis=1))
