"""Is the model of replies as sure as it is right: of tokens, of the end, and of what a turn is paid, with intervals.

    sure - right   mean stated probability less how often it came true     0; above it the model is too sure
    ECE            mean distance of the two over ten bins of probability   0; noise alone is above it
    reward bias    mean foretold less real reward                          0
    reward error   root mean squared error                                 the spread that nobody can foretell

What is resampled is the conversation, copies together. The expected calibration error of few predictions is above 0 by
chance, and its interval with it; the signed difference is not, and is what a verdict can rest on.
"""

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int

from worldmtp.analysis.replies import ReplyArtefact
from worldmtp.analysis.reply_consistency import group_interval
from worldmtp.statistics import Interval, sums_interval

_BINS = 10


def calibration_intervals(artefact: ReplyArtefact, group: Int[np.ndarray, " episode"]) -> dict[str, Interval]:
    """Return the numbers by name; ``group`` numbers the conversations, those that began as copies alike.

    Raises:
        ValueError: the two are of other conversations.
    """
    if len(group) != len(artefact.tokens):
        raise ValueError(f"{len(group)} groups for {len(artefact.tokens)} conversations; give those of one evaluation.")
    reply, turns = artefact.depth > 0, artefact.turn_mask
    right = artefact.top1 == artefact.tokens
    error = artefact.foretold_rewards - artefact.rewards
    squared = group_interval(error**2, turns, group)
    found = {
        "token_overconfidence": group_interval(artefact.top1_prob - right, reply, group),
        "token_ece": _ece(artefact.top1_prob, right, reply, group),
        "end_overconfidence": group_interval(artefact.end_prob - artefact.ended, turns, group),
        "end_ece": _ece(artefact.end_prob, artefact.ended, turns, group),
        "reward_bias": group_interval(error, turns, group),
        "reward_error": None if squared is None else _root(squared),
    }
    return {name: interval for name, interval in found.items() if interval is not None}


def _ece(
    stated: Float[np.ndarray, "episode place"],
    is_true: Bool[np.ndarray, "episode place"],
    counted: Bool[np.ndarray, "episode place"],
    group: Int[np.ndarray, " episode"],
) -> Interval | None:
    """Return the interval of the expected calibration error; None of fewer than two groups."""
    _, place = np.unique(group, return_inverse=True)
    rows = np.broadcast_to(place[:, None], counted.shape)[counted]
    bins = np.minimum((stated[counted] * _BINS).astype(np.int64), _BINS - 1)
    sums = np.zeros((place.max() + 1, _BINS + 1))
    np.add.at(sums, (rows, bins), is_true[counted] - stated[counted])
    np.add.at(sums, (rows, _BINS), 1.0)
    sums = sums[sums[:, -1] > 0]
    if len(sums) < 2:
        return None

    def error(totals: Float[np.ndarray, "resample sum"]) -> Float[np.ndarray, " resample"]:
        return np.asarray(np.abs(totals[:, :-1]).sum(axis=1) / totals[:, -1])

    unit = "episode" if len(np.unique(group)) == len(group) else "group of episodes"
    return sums_interval(sums, error, generator=0, num_resamples=2000, unit=unit)


def _root(squared: Interval) -> Interval:
    estimate, low, high = (math.sqrt(max(0.0, end)) for end in (squared.estimate, squared.low, squared.high))
    return replace(squared, estimate=estimate, low=low, high=high)
