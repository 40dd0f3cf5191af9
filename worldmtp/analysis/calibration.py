"""Whether a head that says "80 %" is right 80 % of the time.

Top-label calibration, per depth, in bins of equal width over confidence (Guo et al. 2017, eq. 3,
https://arxiv.org/abs/1706.04599). ECE is not a proper score: a head that always states its base rate has none. Read it
beside the cross-entropy.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from worldmtp.analysis.rooted import RootedPredictions


@dataclass(frozen=True)
class Reliability:
    """Bins of confidence: how sure, how often right, how many; NaN in empty bins."""

    edges: Float[np.ndarray, " edge"]
    confidence: Float[np.ndarray, " bin"]
    accuracy: Float[np.ndarray, " bin"]
    count: Int[np.ndarray, " bin"]

    @property
    def expected_calibration_error(self) -> float:
        """sum_bins (count / all) |accuracy - confidence|; NaN without any prediction."""
        total = self.count.sum()
        if total == 0:
            return float("nan")
        filled = self.count > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float((self.count[filled] * gaps).sum() / total)


def reliability(rooted: RootedPredictions, depth: int, num_bins: int = 10) -> Reliability:
    """Reliability of depth ``depth``'s top-1 prediction.

    Raises:
        ValueError: a depth that is not there, or a confidence outside [0, 1].
    """
    num_depths = rooted.valid.shape[2]
    if not 1 <= depth <= num_depths:
        raise ValueError(f"depth={depth}; the artefact has depths 1..{num_depths}.")
    valid = rooted.valid[:, :, depth - 1]
    confidence = rooted.confidence[:, :, depth - 1][valid]
    agrees = rooted.agrees[:, :, depth - 1][valid]
    # A probability of 1 summed in float32 may exceed it by a rounding error.
    if confidence.size and not (confidence.min() >= 0 and confidence.max() <= 1 + 1e-5):
        raise ValueError(
            f"head_top1_prob of depth {depth} runs from {confidence.min()} to {confidence.max()}; it holds "
            "probabilities, not log-probabilities or logits."
        )
    edges = np.linspace(0, 1, num_bins + 1)
    # The last bin is closed, so that a confidence of exactly 1 has a place.
    place = np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1)
    count = np.bincount(place, minlength=num_bins)
    divisor = np.where(count > 0, count, np.nan)
    return Reliability(
        edges=edges,
        confidence=np.bincount(place, weights=confidence, minlength=num_bins) / divisor,
        accuracy=np.bincount(place, weights=agrees.astype(np.float64), minlength=num_bins) / divisor,
        count=count,
    )
