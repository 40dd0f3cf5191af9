"""How well replies are foretold, by depth: the f-th token of a reply is f tokens ahead of the turn it answers.

The world says what it says, so there is no p to set against the model's q as for the policy's own tokens. Acceptance is
q of the real token: min(1, q / p) where the world is sure (p = 1), and below it where there is chance, since p <= 1.

The end of a reply is a token. Intervals resample conversations.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from worldmtp.analysis.metrics import Reliability, SequenceSums, reliability_of
from worldmtp.analysis.replies import ReplyArtefact


def reply_agreement(artefact: ReplyArtefact) -> SequenceSums:
    """Return how often the most probable token is the real one, given the reply's earlier tokens."""
    return _by_depth(artefact, _is_right(artefact).astype(np.float64))


def reply_acceptance(artefact: ReplyArtefact) -> SequenceSums:
    """Return the probability of the real token."""
    return _by_depth(artefact, np.exp(artefact.logprob))


def reply_survival(artefact: ReplyArtefact) -> SequenceSums:
    """Return the probability of the real reply up to and with this token."""
    so_far = np.zeros(artefact.logprob.shape)
    for place in range(artefact.logprob.shape[1]):
        before = so_far[:, place - 1] if place else 0.0
        so_far[:, place] = np.where(artefact.depth[:, place] > 1, before, 0.0) + np.nan_to_num(
            artefact.logprob[:, place]
        )
    return _by_depth(artefact, np.exp(so_far))


def reply_cross_entropy(artefact: ReplyArtefact) -> SequenceSums:
    """Return -log q of the real token in nats."""
    return _by_depth(artefact, -artefact.logprob)


def token_reliability(artefact: ReplyArtefact, depth: int | None = None) -> Reliability:
    """Return the reliability of the most probable token, of one depth or of all."""
    chosen = artefact.depth > 0 if depth is None else artefact.depth == depth
    return reliability_of(artefact.top1_prob[chosen], _is_right(artefact)[chosen])


def end_reliability(artefact: ReplyArtefact) -> Reliability:
    """Return the reliability of the stated probability that a turn ends the episode."""
    return reliability_of(artefact.end_prob[artefact.turn_mask], artefact.ended[artefact.turn_mask])


@dataclass(frozen=True)
class ReplyTotals:
    """Means over all turns or tokens of replies; NaN where there is none.

    ``whole`` is the share of replies whose most probable tokens are all the real ones; ``reward_error`` the root mean
    squared error of the mean reward foretold of a turn.
    """

    num_conversations: int
    num_turns: int
    whole: float
    top1: float
    accept: float
    ece: float
    end_ece: float
    reward_error: float


def reply_totals(artefact: ReplyArtefact) -> ReplyTotals:
    """Return the means over all turns."""
    reply, turns = artefact.depth > 0, artefact.turn_mask
    right = _is_right(artefact)
    # A reply of no tokens has its end, so that each turn begins one reply; a wrong token marks the reply it is in.
    number = np.cumsum(artefact.depth.ravel() == 1) - 1
    wrong = np.bincount(number[(reply & ~right).ravel()], minlength=int((artefact.depth == 1).sum()))
    error = artefact.foretold_rewards[turns] - artefact.rewards[turns]
    return ReplyTotals(
        num_conversations=len(artefact.tokens),
        num_turns=int(turns.sum()),
        whole=_mean(wrong == 0),
        top1=_mean(right[reply]),
        accept=_mean(np.exp(artefact.logprob[reply])),
        ece=token_reliability(artefact).expected_calibration_error,
        end_ece=end_reliability(artefact).expected_calibration_error,
        reward_error=float(np.sqrt(_mean(error**2))),
    )


def reply_scalars(artefact: ReplyArtefact) -> dict[str, float]:
    """Return every metric of replies by the tag it is logged under."""
    totals = reply_totals(artefact)
    means = {
        "top1": reply_agreement(artefact).mean(),
        "accept": reply_acceptance(artefact).mean(),
        "survival": reply_survival(artefact).mean(),
        "ce": reply_cross_entropy(artefact).mean(),
    }
    depths = range(1, artefact.max_depth + 1)
    scalars = {
        f"world_model/reply_depth_{f}/{name}": float(values[f - 1]) for name, values in means.items() for f in depths
    }
    scalars |= {
        f"world_model/reply_depth_{f}/ece": token_reliability(artefact, f).expected_calibration_error for f in depths
    }
    names = ("whole", "top1", "accept", "ece", "end_ece", "reward_error")
    scalars |= {f"world_model/reply_{name}": float(getattr(totals, name)) for name in names}
    if len(artefact.real_scores):
        real, imagined = artefact.real_scores.mean(axis=0), artefact.imagined_scores.mean(axis=0)
        for column, name in enumerate(("return", "turns", "ended")):
            scalars[f"imagination/heldout_{name}_real"] = float(real[column])
            scalars[f"imagination/heldout_{name}_imagined"] = float(imagined[column])
    return scalars


def _is_right(artefact: ReplyArtefact) -> Bool[np.ndarray, "episode length"]:
    right: Bool[np.ndarray, "episode length"] = (artefact.top1 == artefact.tokens) & (artefact.depth > 0)
    return right


def _by_depth(artefact: ReplyArtefact, values: Float[np.ndarray, "episode length"]) -> SequenceSums:
    at = [artefact.depth == depth for depth in range(1, artefact.max_depth + 1)]
    return SequenceSums(
        total=np.stack([np.where(chosen, values, 0.0).sum(axis=1) for chosen in at], axis=1),
        count=np.stack([chosen.sum(axis=1) for chosen in at], axis=1),
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
