"""Is the model of replies the world? Consistency of answers and of whole conversations, and what it says of returns.

The policy's turns given, a conversation tau with the answers y_1 .. y_T has the probabilities

    P(tau) = rho(opening) prod_t pi(said_t | ...) W(y_t | ..., said_t)        in the world
    Q(tau) = rho(opening) prod_t pi(said_t | ...) M(y_t | ..., said_t)        in the model

The policy is the same in both, so only the answers are left of their ratio, and on real conversations

    kept_t      =  min(1, M(y_t) / W(y_t))             mean: 1 - TV of one answer
    survival_t  =  kept_1 ... kept_t                   the first t answers of an imagined conversation are the real ones
    wci         =  min(1, prod_t M(y_t) / W(y_t))      mean: 1 - TV(P, Q) of whole conversations, at least survival_T

In a world that is sure W is 1, and kept_t is the probability of the answer itself. In a world of chance W(y_t) is taken
as the share of the conversations with the same text up to there that were answered so: 1 where there is no other. With
the policy's shares these are laws of the sample, and the means of kept and wci are sums of min(P, Q) over it. A minimum
is concave, and what was never heard keeps nothing: in expectation they fall short of the truth and never exceed it. So
a total variation from here is an upper bound, exact where the world is sure. (The model must not have learnt from the
conversations that are counted together: hence those of one member alone.)

**The certificate.** For returns that are a function of the conversation with values in [a, b], what its rewards are on
average included, |E_Q R - E_P R| <= (b - a) TV(P, Q): the simulation lemma (Kearns and Singh 2002,
https://doi.org/10.1023/A:1017984413808) in its sharpest form, with the whole path's variation in place of the sum over
its steps. So imagined returns that are further off accuse what imagination pays, since the words cannot explain it.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

from worldmtp.analysis import consistency
from worldmtp.analysis.consistency import Certificate
from worldmtp.analysis.reply_turns import AnsweredTurns, ReplyTurns
from worldmtp.statistics import Interval, ratio_interval

OfTurns = Float[np.ndarray, "episode turn"]


def log_ratios(turns: AnsweredTurns) -> OfTurns:
    """Return log M(y) / W(y) of each answer; 0 where there is no turn."""
    share = np.maximum(turns.alike, 1) / np.maximum(turns.asked, 1)
    return np.where(turns.there, turns.logprob - np.log(share), 0.0)


def kept(turns: AnsweredTurns) -> OfTurns:
    """Return min(1, M / W) of each answer; 1 where there is no turn."""
    return np.exp(np.minimum(log_ratios(turns), 0.0))


def survival(turns: AnsweredTurns) -> OfTurns:
    """Return the product of ``kept`` up to and with each turn."""
    return np.cumprod(kept(turns), axis=1)


def kept_conversations(turns: AnsweredTurns) -> Float[np.ndarray, " episode"]:
    """Return min(1, M / W) of each whole conversation; 1 of one without a turn."""
    return np.exp(np.minimum(log_ratios(turns).sum(axis=1), 0.0))


def has_chance(turns: AnsweredTurns) -> bool | None:
    """Return whether the world has answered the same text in two ways; None if no two groups have asked it the same."""
    if np.any(turns.alike < turns.asked):
        return True
    # Copies of one conversation share what is hidden, and perhaps their chance: that they agree says nothing.
    elsewhere = turns.there & (turns.asked > _copies(turns)[:, None])
    return False if np.any(elsewhere) else None


def _copies(turns: AnsweredTurns) -> Int[np.ndarray, " episode"]:
    _, place, count = np.unique(turns.group, return_inverse=True, return_counts=True)
    copies: Int[np.ndarray, " episode"] = count[place]
    return copies


def group_interval(
    values: OfTurns,
    counted: Bool[np.ndarray, "episode turn"],
    group: Int[np.ndarray, " episode"],
) -> Interval | None:
    """Return the interval of the mean over what is counted, groups of conversations resampled; None if one has any.

    A group is what began alike; where each has one conversation, the unit is the episode.
    """
    _, place = np.unique(group, return_inverse=True)
    total = np.bincount(place, weights=np.where(counted, values, 0.0).sum(axis=1))
    count = np.bincount(place, weights=counted.sum(axis=1))
    if (count > 0).sum() < 2:
        return None
    unit = "episode" if len(total) == len(group) else "group of episodes"
    return ratio_interval(total, count, generator=0, num_resamples=2000, unit=unit)


def whole_interval(values: Float[np.ndarray, " episode"], turns: AnsweredTurns) -> Interval | None:
    """Return the interval of the mean over conversations that have a turn."""
    has_turn = turns.there.sum(axis=1, keepdims=True) > 0
    return group_interval(values[:, None], has_turn, turns.group)


def reply_intervals(found: ReplyTurns) -> dict[str, Interval]:
    """Return the consistency of the newest conversations' answers by name, what has an interval.

    ``tv`` of one answer and ``kl``, its mean of log W / M in nats; ``survival`` and ``wci`` of whole conversations;
    ``h_eff`` and ``h_eff_tokens``, the answers, and the tokens of their replies, up to the first that is not the real
    one; ``entropy`` of the prediction; ``turns``, how many there are of a conversation.
    """
    turns = found.newest
    alive = np.where(turns.there, survival(turns), 0.0)
    numbers = {
        "tv": group_interval(1 - kept(turns), turns.there, turns.group),
        "kl": group_interval(-log_ratios(turns), turns.there, turns.group),
        "survival": whole_interval(survival(turns)[:, -1], turns),
        "wci": whole_interval(kept_conversations(turns), turns),
        "h_eff": whole_interval(alive.sum(axis=1), turns),
        "h_eff_tokens": whole_interval((alive * found.num_tokens).sum(axis=1), turns),
        "entropy": group_interval(np.where(turns.there, found.entropy, 0.0), turns.there, turns.group),
        "turns": whole_interval(turns.there.sum(axis=1).astype(np.float64), turns),
    }
    return {name: interval for name, interval in numbers.items() if interval is not None}


def consistency_scalars(found: ReplyTurns) -> dict[str, float]:
    """Return the estimates by the tags they are logged under, those that are defined."""
    return {f"world_model/reply_{name}": interval.estimate for name, interval in reply_intervals(found).items()}


def survival_by_turn(turns: AnsweredTurns) -> list[Interval | None]:
    """Return the mean survival of the conversations that reach each turn."""
    alive = survival(turns)
    return [
        group_interval(alive[:, [number]], turns.there[:, [number]], turns.group) for number in range(alive.shape[1])
    ]


def by_entropy(
    found: ReplyTurns, values: OfTurns, num_bins: int = 4
) -> tuple[Float[np.ndarray, " edge"], list[Interval | None]]:
    """Return edges and means of ``values`` by the entropy of the prediction, which is known before the answer is.

    The inner edges are quantiles over all turns; ties fall into the lower bin, so of a model that is sure some are
    empty.
    """
    there = found.newest.there
    edges = np.quantile(found.entropy[there], np.linspace(0, 1, num_bins + 1))
    place = np.searchsorted(edges[1:-1], found.entropy, side="left")
    groups = found.newest.group
    return edges, [group_interval(values, there & (place == chosen), groups) for chosen in range(num_bins)]


def return_range(found: ReplyTurns) -> float:
    """Return the range of held-out returns, real and imagined, at least 1: where all are alike, it is not known.

    Imagined ones are in it, or a wrong reply that leads where no real episode has been, off a cliff, would be taken for
    a wrong reward. What is paid wrongly widens it too, and the bound by the share of conversations that differ.
    """
    both = np.concatenate([found.real_returns, found.imagined_returns])
    return max(1.0, float(np.ptp(both))) if len(both) else 1.0


def reply_certificate(found: ReplyTurns) -> Certificate | None:
    """Return the certificate of whole imagined conversations beside the held-out ones they share their openings with.

    What is resampled is the episode with its counterpart. A conversation that could not have been imagined keeps
    nothing. None with fewer than two.
    """
    if len(found.real_returns) < 2:
        return None
    whole = np.where(found.imaginable, kept_conversations(found.heldout), 0.0)
    return consistency.certificate(
        found.imagined_returns[:, None],
        found.real_returns[:, None],
        whole[:, None],
        return_range(found),
        generator=0,
        unit="episode",
    )


def reply_rows(found: ReplyTurns) -> Iterator[tuple[str, int | None, Interval]]:
    """Yield every number with its interval, as quantity and depth: a turn, or a quartile of the entropy, from 1 on."""
    for name, interval in reply_intervals(found).items():
        yield f"reply/{name}", None, interval
    series = {
        "survival_of_turn": survival_by_turn(found.newest),
        "tv_of_quartile": by_entropy(found, 1 - kept(found.newest))[1],
        "kl_of_quartile": by_entropy(found, -log_ratios(found.newest))[1],
    }
    for name, intervals in series.items():
        for depth, one in enumerate(intervals, start=1):
            if one is not None:
                yield f"reply/{name}", depth, one
    certificate = reply_certificate(found)
    if certificate is not None:
        for name in ("difference", "bound", "slack"):
            yield f"reply/return_{name}", None, getattr(certificate, name)
