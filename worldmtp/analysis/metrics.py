"""Predicted against realized tokens, per depth: everything that two log-probabilities per (token, depth) give.

A prediction belongs to its root, the position it was made from. A root counts at depth k if the k tokens after it are
the policy's and every depth up to k spoke of them. What is averaged are (root, depth) pairs; what is resampled for an
interval is the sequence, never the token. On a realized path x drawn from the trunk p, with
r_j = log q_j(x_{t+j}) - log p(x_{t+j} | x_{<t+j}) at root t:

    acceptance  alpha_k = E[min(1, e^{r_k})] = 1 - E[TV(p, q_k)]
    survival    S_k     = E[prod_{j<=k} min(1, e^{r_j})]          speculative drafts of length k kept whole
    wci         WCI_k   = E[min(1, e^{r_1 + ... + r_k})]          1 - TV of the k-token paths
    kl          KL_k    = -E[r_1 + ... + r_k]

so S_k <= WCI_k, and for any return in [a, b] of those k tokens |imagined - realized| <= (b - a)(1 - WCI_k). Leviathan
et al. 2023, https://arxiv.org/abs/2211.17192, for alpha; the identities hold only where x was drawn from p.

Left out here: the structural gap apart from the head's error, which needs marginals of the trunk (``loss_split``).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from worldmtp.analysis.artefacts import EvalArtefact
from worldmtp.statistics import Interval, ratio_interval, sums_interval

DepthArray = Float[np.ndarray, "batch length depth"]


@dataclass(frozen=True)
class RootedPredictions:
    """The artefact turned from targets to roots: entry [b, t, k-1] is what depth k at root t said of token t + k.

    ``valid`` says which entries are there; the others are zero.
    """

    log_ratio: DepthArray
    cross_entropy: DepthArray
    chain_cross_entropy: DepthArray
    agrees: Bool[np.ndarray, "batch length depth"]
    confidence: DepthArray
    entropy: DepthArray
    chain_entropy: DepthArray
    valid: Bool[np.ndarray, "batch length depth"]


@dataclass(frozen=True)
class SequenceSums:
    """A per-token quantity as its sum and its count over each sequence."""

    total: Float[np.ndarray, "batch depth"]
    count: Int[np.ndarray, "batch depth"]

    def mean(self) -> Float[np.ndarray, " depth"]:
        """Return the mean over tokens per depth; NaN where no root reaches."""
        count = self.count.sum(axis=0)
        return np.where(count > 0, self.total.sum(axis=0) / np.maximum(count, 1), np.nan)

    def interval(
        self, depth: int, *, generator: np.random.Generator | int, level: float = 0.9, num_resamples: int = 2000
    ) -> Interval | None:
        """Return the interval at a depth, sequences resampled; None if fewer than two sequences reach it."""
        total, count = self.total[:, depth - 1], self.count[:, depth - 1]
        if (count > 0).sum() < 2:
            return None
        return ratio_interval(total, count, generator=generator, level=level, num_resamples=num_resamples)


def rooted_predictions(artefact: EvalArtefact) -> RootedPredictions:
    """Return each prediction at the root it was made from, masked to roots whose next k tokens are the policy's."""
    shape = artefact.head_logprob.shape
    arrays = {name: np.zeros(shape) for name in RootedPredictions.__dataclass_fields__}
    arrays["agrees"] = np.zeros(shape, dtype=bool)
    arrays["valid"] = np.zeros(shape, dtype=bool)
    length = shape[1]
    reaches = np.ones(shape[:2], dtype=bool)
    for k in range(1, shape[2] + 1):
        if k >= length:
            break
        roots = slice(0, length - k)
        targets = slice(k, length)
        logprob = artefact.head_logprob[:, targets, k - 1]
        valid = reaches[:, roots] & artefact.action_mask[:, targets] & np.isfinite(logprob)
        # Depth k + 1 needs the root to have reached depth k.
        reaches = np.zeros_like(reaches)
        reaches[:, roots] = valid
        said = {
            "log_ratio": logprob - artefact.chain_logprob[:, targets],
            "cross_entropy": -logprob,
            "chain_cross_entropy": -artefact.chain_logprob[:, targets],
            "agrees": artefact.head_top1[:, targets, k - 1] == artefact.input_ids[:, targets],
            "confidence": artefact.head_top1_prob[:, targets, k - 1],
            "entropy": artefact.head_entropy[:, targets, k - 1],
            "chain_entropy": artefact.chain_entropy[:, targets],
            "valid": valid,
        }
        for name, values in said.items():
            arrays[name][:, roots, k - 1] = np.where(valid, values, 0)
    return RootedPredictions(**arrays)


def acceptance_probability(rooted: RootedPredictions) -> DepthArray:
    """Return min(1, q_k / p) of each token."""
    return np.exp(np.minimum(rooted.log_ratio, 0))


def acceptance(rooted: RootedPredictions) -> SequenceSums:
    """Return alpha_k."""
    return _sums(acceptance_probability(rooted), rooted.valid)


def survival(rooted: RootedPredictions) -> SequenceSums:
    """Return S_k."""
    return _sums(np.cumprod(acceptance_probability(rooted), axis=2), rooted.valid)


def kept_path_probability(rooted: RootedPredictions) -> DepthArray:
    """Return min(1, q / p) of each path of k tokens; its mean over realized paths is 1 - TV of their two laws."""
    return np.exp(np.minimum(np.cumsum(rooted.log_ratio, axis=2), 0))


def path_consistency(rooted: RootedPredictions) -> SequenceSums:
    """Return WCI_k."""
    return _sums(kept_path_probability(rooted), rooted.valid)


def path_divergence(rooted: RootedPredictions) -> SequenceSums:
    """Return KL_k in nats. A sample mean of it may be slightly negative."""
    return _sums(-np.cumsum(rooted.log_ratio, axis=2), rooted.valid)


def agreement(rooted: RootedPredictions) -> SequenceSums:
    """Return the top-1 agreement: how often the most probable predicted token is the realized one."""
    return _sums(rooted.agrees.astype(np.float64), rooted.valid)


def cross_entropy(rooted: RootedPredictions) -> SequenceSums:
    """Return -log q_k of the realized token in nats."""
    return _sums(rooted.cross_entropy, rooted.valid)


def chain_cross_entropy(rooted: RootedPredictions) -> SequenceSums:
    """Return -log p of the same tokens by the trunk one step ahead in nats: the floor of ``cross_entropy``."""
    return _sums(rooted.chain_cross_entropy, rooted.valid)


def gap(rooted: RootedPredictions) -> SequenceSums:
    """Return ``cross_entropy`` less its floor: what is unknown k tokens ahead plus the head's error, in nats."""
    return _sums(-rooted.log_ratio, rooted.valid)


def prediction_entropy(rooted: RootedPredictions) -> SequenceSums:
    """Return the entropy of the head's prediction in nats."""
    return _sums(rooted.entropy, rooted.valid)


def effective_horizon(rooted: RootedPredictions, *, generator: np.random.Generator | int) -> Interval | None:
    """Return H_eff = sum_k S_k, drafted tokens kept per root; None if fewer than two sequences reach some depth.

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

    return sums_interval(stacked, statistic, generator=generator, num_resamples=2000)


def by_chain_entropy(
    rooted: RootedPredictions, values: DepthArray, num_bins: int = 4
) -> tuple[Float[np.ndarray, " edge"], tuple[SequenceSums, ...]]:
    """Return edges and per-bin sums of ``values``, by the entropy of the trunk at the token spoken of.

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


@dataclass(frozen=True)
class Reliability:
    """Bins of confidence: how sure, how often right, how many; NaN in empty bins.

    Top-label calibration in bins of equal width (Guo et al. 2017, eq. 3, https://arxiv.org/abs/1706.04599). Its error
    is not a proper score: a head that always states its base rate has none. Read it beside the cross-entropy.
    """

    edges: Float[np.ndarray, " edge"]
    confidence: Float[np.ndarray, " bin"]
    accuracy: Float[np.ndarray, " bin"]
    count: Int[np.ndarray, " bin"]

    @property
    def expected_calibration_error(self) -> float:
        """Return sum_bins (count / all) |accuracy - confidence|; NaN without any prediction."""
        total = self.count.sum()
        if total == 0:
            return float("nan")
        filled = self.count > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float((self.count[filled] * gaps).sum() / total)


def reliability(rooted: RootedPredictions, depth: int, num_bins: int = 10) -> Reliability:
    """Return the reliability of depth ``depth``'s top-1 prediction.

    Raises:
        ValueError: there is no such depth, or a confidence outside [0, 1].
    """
    num_depths = rooted.valid.shape[2]
    if not 1 <= depth <= num_depths:
        raise ValueError(f"depth={depth}; the artefact has depths 1..{num_depths}.")
    valid = rooted.valid[:, :, depth - 1]
    confidence = rooted.confidence[:, :, depth - 1][valid]
    agrees = rooted.agrees[:, :, depth - 1][valid]
    try:
        return reliability_of(confidence, agrees, num_bins)
    except ValueError as error:
        raise ValueError(f"head_top1_prob of depth {depth}: {error}") from error


def reliability_of(
    confidence: Float[np.ndarray, " prediction"], is_right: Bool[np.ndarray, " prediction"], num_bins: int = 10
) -> Reliability:
    """Return the reliability of predictions that state how probable it is that they are right.

    Raises:
        ValueError: a confidence is outside [0, 1].
    """
    # A probability of 1 summed in float32 may exceed it by a rounding error.
    if confidence.size and not (confidence.min() >= 0 and confidence.max() <= 1 + 1e-5):
        raise ValueError(
            f"confidences run from {confidence.min()} to {confidence.max()}; expected probabilities, not "
            "log-probabilities or logits."
        )
    edges = np.linspace(0, 1, num_bins + 1)
    # The last bin is closed, so that a confidence of exactly 1 has a place.
    place = np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1)
    count = np.bincount(place, minlength=num_bins)
    divisor = np.where(count > 0, count, np.nan)
    return Reliability(
        edges=edges,
        confidence=np.bincount(place, weights=confidence, minlength=num_bins) / divisor,
        accuracy=np.bincount(place, weights=is_right.astype(np.float64), minlength=num_bins) / divisor,
        count=count,
    )


def depth_scalars(artefact: EvalArtefact) -> dict[str, float]:
    """Return every per-depth metric by the tag it is logged under.

    Depths that no root reaches have none, as where a world takes turns of one token; ``h_eff`` sums over all depths.
    """
    rooted = rooted_predictions(artefact)
    means = {
        "ce": cross_entropy(rooted).mean(),
        "ce_chain": chain_cross_entropy(rooted).mean(),
        "gap": gap(rooted).mean(),
        "top1": agreement(rooted).mean(),
        "accept": acceptance(rooted).mean(),
        "survival": survival(rooted).mean(),
        "wci": path_consistency(rooted).mean(),
        "kl": path_divergence(rooted).mean(),
        "entropy": prediction_entropy(rooted).mean(),
    }
    depths = [k for k in range(1, artefact.num_depths + 1) if rooted.valid[:, :, k - 1].any()]
    scalars = {f"world_model/depth_{k}/{name}": float(values[k - 1]) for name, values in means.items() for k in depths}
    scalars |= {f"world_model/depth_{k}/ece": reliability(rooted, k).expected_calibration_error for k in depths}
    if len(depths) == artefact.num_depths:
        scalars["world_model/h_eff"] = float(means["survival"].sum())
    return scalars


def _sums(values: DepthArray, valid: Bool[np.ndarray, "batch length depth"]) -> SequenceSums:
    return SequenceSums(total=np.where(valid, values, 0.0).sum(axis=1), count=valid.sum(axis=1))
