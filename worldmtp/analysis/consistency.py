"""Is what the heads say one world, and the world of who acts? Tests that need no truth, and one that bounds returns.

Each names a fault that the others are made not to see, by whole distributions ``predicted[b, r, k-1]`` of token t+k
from root r and the texts that came (``tests/exact/test_faults.py`` plants the faults and reads all of them):

    tower       sharper or flatter than it knows: heads of one root and of the next disagree in the mean
    alignment   a neighbouring depth foretells the token better: a head is shifted
    null        no better on its own future than on another text's: a head speaks of somewhere else
    staleness   the error is no larger than what the policy has moved since: heads are old, not wrong
    certificate imagined and real return differ by more than the tokens' law allows: the reward head is wrong

A leak, a head that has seen its token, is an error below zero (``loss_split``).

The texts must be drawn from the law that is tested against: the acting policy's own at its temperature.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from worldmtp.analysis.loss_split import Parts, Probabilities, of_realized, realized_loss
from worldmtp.analysis.metrics import DepthArray, RootedPredictions, SequenceSums, by_chain_entropy
from worldmtp.statistics import Interval, bootstrap_interval, sums_interval

Tokens = Int[np.ndarray, "sequence time"]
RootValues = Float[np.ndarray, "sequence root"]


def sequence_interval(values: Parts, *, generator: np.random.Generator | int, level: float = 0.9) -> Interval:
    """Return the interval of the mean over roots and depths, sequences resampled."""
    return bootstrap_interval(values.mean(axis=(1, 2)), generator=generator, level=level, num_resamples=2000)


def tower_residual(predicted: Probabilities) -> Float[np.ndarray, "sequence later_root later_depth"]:
    """Return q_{k-1}(v | x_<=t+1) - q_k(v | x_<=t) with v the head's first choice at t, for k = 2 .. depth.

    Of any one law the mean is 0: E over x_{t+1} of the nearer prediction is the farther one (the tower property), and v
    is settled before x_{t+1} is drawn. Below 0 the farther head is surer than it will turn out to be. Roots follow each
    other.
    """
    first = predicted[:, :-1, 1:]
    choice = first.argmax(axis=-1)[..., None]
    nearer = np.take_along_axis(predicted[:, 1:, :-1], choice, axis=-1)
    residual: Float[np.ndarray, "sequence later_root later_depth"] = (
        nearer - np.take_along_axis(first, choice, axis=-1)
    )[..., 0]
    return residual


def null_advantage(predicted: Probabilities, tokens: Tokens, first_root: int = 0, first_depth: int = 1) -> Parts:
    """Return the loss on the next text's tokens less the loss on its own: 0 for who knows nothing of this text.

    Raises:
        ValueError: there is one text alone.
    """
    if len(tokens) < 2:
        raise ValueError("one text has no other beside it; the null needs at least 2.")
    other = realized_loss(predicted, np.roll(tokens, -1, axis=0), first_root, first_depth)
    advantage: Parts = other - realized_loss(predicted, tokens, first_root, first_depth)
    return advantage


def misaligned_by(
    predicted: Probabilities, tokens: Tokens, *, generator: np.random.Generator | int, first_root: int = 0
) -> int:
    """Return the shift, -1 or 1, whose depths foretell the tokens better than those that should; 0 where neither does.

    Log loss is proper, so of right marginals no neighbour gains. One counts if its gain is above 0 by its whole
    interval and it knows its text from another: a flat law beats wrong heads without being right.

    Raises:
        ValueError: there is one depth alone.
    """
    depth = predicted.shape[2]
    if depth < 2:
        raise ValueError("one depth has no neighbour; alignment needs at least 2.")
    generator = np.random.default_rng(generator)
    gains = {}
    for shift in (-1, 1):
        lowest, highest = max(0, -shift), min(depth, depth - shift)
        own, other = predicted[:, :, lowest:highest], predicted[:, :, lowest + shift : highest + shift]
        gain, skill = (
            sequence_interval(values, generator=generator)
            for values in (
                realized_loss(own, tokens, first_root, lowest + 1)
                - realized_loss(other, tokens, first_root, lowest + 1),
                null_advantage(other, tokens, first_root, lowest + 1),
            )
        )
        if gain.low > 0 and skill.low > 0:
            gains[shift] = gain.estimate
    return max(gains, key=lambda shift: gains[shift], default=0)


def staleness_bound(step_distance: Float[np.ndarray, "sequence time"], num_roots: int, depth: int) -> Parts:
    """Return, per root and depth k, the sum of the k total variations between the old and the new policy on the way.

    ``step_distance[:, t]`` is TV(new, old) of the token after x_<=t, on texts of the old policy (or, as the inequality
    is symmetric, of the new). Its mean bounds TV(m_k^new, m_k^old), so what heads can have lost by being as old as the
    old policy: couple the two step by step. By Pinsker it is at most k sqrt(KL_max / 2).

    Raises:
        ValueError: a root's window leaves the text.
    """
    if num_roots + depth - 1 > step_distance.shape[1]:
        raise ValueError(f"{num_roots} roots with {depth} tokens ahead need more than {step_distance.shape[1]} steps.")
    windows = np.stack([step_distance[:, j : j + num_roots] for j in range(depth)], axis=2)
    bound: Parts = windows.cumsum(axis=2)
    return bound


def kept_paths(
    predicted: Probabilities,
    chain_logprob: Parts,
    tokens: Tokens,
    first_root: int = 0,
) -> RootValues:
    """Return min(1, q / p) of the realized path of all depths per root; its mean is 1 - TV of the paths' laws.

    ``chain_logprob[b, r, k-1]`` is log p(x_{t+k} | x_<t+k).
    """
    log_ratio = np.log(of_realized(predicted, tokens, first_root)) - chain_logprob
    kept: RootValues = np.exp(np.minimum(log_ratio.sum(axis=2), 0))
    return kept


@dataclass(frozen=True)
class Certificate:
    """|imagined - real return| beside what the tokens' law allows, over the same roots.

    Attributes:
        difference: of the means, imagined less realized.
        bound: range * (1 - world consistency).
        slack: bound - |difference|; below 0 the certificate is violated. Its interval keeps the difference's sign: the
            size of a resampled difference is above 0 even where the difference is noise around 0.
    """

    difference: Interval
    bound: Interval
    slack: Interval

    @property
    def verdict(self) -> str:
        """Return ``holds``, ``violated`` or, where the slack's interval holds 0, ``undetermined``."""
        if self.slack.high < 0:
            return "violated"
        return "holds" if self.slack.low >= 0 else "undetermined"


def certificate(
    imagined: RootValues,
    realized: RootValues,
    kept: RootValues,
    reward_range: float,
    *,
    generator: np.random.Generator | int,
    unit: str = "sequence",
) -> Certificate:
    """Return the certificate of returns of the next k tokens that lie in an interval of length ``reward_range``.

    For any reward of x_{t+1} .. x_{t+k} alone, |E_q R - E_p R| <= range * TV(q, p) = range * (1 - E min(1, q/p)) at
    each prefix, and so in the mean. ``kept`` is ``kept_paths``. What bootstraps on a value beyond the k tokens is no
    such reward. Roots where an entry is NaN are left out of all three.

    Raises:
        ValueError: the range is not positive, realized returns span more, or fewer than two sequences have a root.
    """
    if not reward_range > 0:
        raise ValueError(f"reward_range={reward_range} must be positive: the largest return less the smallest.")
    there = np.isfinite(imagined) & np.isfinite(realized) & np.isfinite(kept)
    span = float(np.ptp(realized[there])) if there.any() else 0.0
    if span > reward_range * (1 + 1e-9):
        raise ValueError(f"realized returns span {span}, more than reward_range={reward_range}.")
    entries = (there, np.where(there, imagined - realized, 0.0), np.where(there, 1 - kept, 0.0))
    sums = np.stack([entry.sum(axis=1) for entry in entries], axis=-1).astype(np.float64)[there.any(axis=1)]
    generator = np.random.default_rng(generator)

    def difference(totals: np.ndarray) -> np.ndarray:
        return np.asarray(totals[:, 1] / totals[:, 0])

    def bound(totals: np.ndarray) -> np.ndarray:
        return np.asarray(reward_range * totals[:, 2] / totals[:, 0])

    sign = np.sign(difference(sums.sum(axis=0, keepdims=True))[0])

    def slack(totals: np.ndarray) -> np.ndarray:
        return bound(totals) - sign * difference(totals)

    found = [
        sums_interval(sums, statistic, generator=generator, num_resamples=2000, unit=unit)
        for statistic in (difference, bound, slack)
    ]
    return Certificate(*found)


def revision(rooted: RootedPredictions) -> SequenceSums:
    """Return log q_{k-1}(x_{t+k} | x_<=t+1) - log q_k(x_{t+k} | x_<=t): what one more token told, 0 at depth 1.

    Of one law its mean is I(x_{t+k}; x_{t+1} | x_<=t) >= 0; below 0, seeing more makes the heads worse.
    """
    gained = np.zeros_like(rooted.cross_entropy)
    gained[:, :-1, 1:] = rooted.cross_entropy[:, :-1, 1:] - rooted.cross_entropy[:, 1:, :-1]
    both = np.zeros_like(rooted.valid)
    both[:, :-1, 1:] = rooted.valid[:, :-1, 1:] & rooted.valid[:, 1:, :-1]
    return SequenceSums(total=np.where(both, gained, 0.0).sum(axis=1), count=both.sum(axis=1))


def by_root_entropy(
    rooted: RootedPredictions, values: DepthArray, num_bins: int = 4
) -> tuple[Float[np.ndarray, " edge"], tuple[SequenceSums, ...]]:
    """Return edges and sums of ``values`` by the entropy of the trunk at the root, known before any token is drawn.

    For quantities of whole paths, as 1 - TV: split by the entropy at the target, as ``by_chain_entropy``, the path that
    was drawn would choose its own bin, and within a bin the mean would be of no law.
    """
    at_root = np.broadcast_to(rooted.chain_entropy[:, :, :1], rooted.chain_entropy.shape)
    return by_chain_entropy(replace(rooted, chain_entropy=np.array(at_root)), values, num_bins)
