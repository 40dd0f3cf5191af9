"""Predictions at the root they were made from, and per-token quantities as sums over each sequence.

A root counts at depth k if the k tokens after it are the policy's and every depth up to k spoke of them. What is
averaged are (root, depth) pairs; what is resampled for an interval is the sequence, never the token.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from worldmtp.analysis.artefacts import EvalArtefact
from worldmtp.statistics import Interval, sums_interval

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
        """The mean over tokens per depth; NaN where no root reaches."""
        count = self.count.sum(axis=0)
        return np.where(count > 0, self.total.sum(axis=0) / np.maximum(count, 1), np.nan)

    def interval(
        self, depth: int, *, generator: np.random.Generator | int, level: float = 0.9, num_resamples: int = 2000
    ) -> Interval | None:
        """The interval at a depth, sequences resampled; None if fewer than two sequences reach it."""
        used = self.count[:, depth - 1] > 0
        if used.sum() < 2:
            return None
        sums = np.stack([self.total[used, depth - 1], self.count[used, depth - 1].astype(np.float64)], axis=1)
        return sums_interval(sums, _ratio, generator=generator, level=level, num_resamples=num_resamples)


def rooted_predictions(artefact: EvalArtefact) -> RootedPredictions:
    """Each prediction at the root it was made from, masked to roots whose next k tokens are the policy's."""
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


def _ratio(totals: Float[np.ndarray, "resample 2"]) -> Float[np.ndarray, " resample"]:
    return totals[:, 0] / totals[:, 1]
