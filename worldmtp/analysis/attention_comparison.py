"""What the trunks of two runs look at, side by side: on the same held-out prompts, or over the seeds of two sweeps.

Of each pattern two readings: the mean over all heads, and the strongest head (of entropy the lowest), chosen in each
run by itself, so that it may be another one. At three moments: before reinforcement, at the end, and the change from
the one to the other.
Differences are second - first; what is resampled is the prompt, and prompts bring the answers of both runs.

A head has a number, not a name: heads of two runs answer to each other only where the runs began with the same weights,
as with one seed. Left out: texts are those that each policy wrote itself, so a difference may be one of the texts.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from worldmtp.analysis.artefacts import EvalArtefact
from worldmtp.analysis.attention_files import AttentionHistory, AttentionRecord
from worldmtp.analysis.attention_patterns import PATTERNS, TITLES, PatternSums
from worldmtp.analysis.differences import Difference, paired_rows
from worldmtp.statistics import paired_ratio_difference, sums_interval

READINGS = ("all heads", "strongest head")
"""Of entropy the second is the lowest of all heads, and is called so."""
_LOWEST = "lowest of all heads"
ONE_HEAD = (READINGS[1], _LOWEST)
"""How the name of a quantity ends that is read of one head."""
MAX_HEADS_WITH_INTERVALS = 64
"""Heads of a trunk up to which each one's difference has its interval."""
_END, _BEFORE, _CHANGE = "at the end", "before RL", "change in RL"
_Column = Real[np.ndarray, " prompt"]


@runtime_checkable
class _Named(Protocol):
    @property
    def quantity(self) -> str: ...


_Found = TypeVar("_Found", bound=_Named)


def moments(history: AttentionHistory) -> dict[str, tuple[AttentionRecord, ...]]:
    """Return the evaluations that each moment is read from: one, or of the change the last and the first."""
    if not history.run:
        return {}
    first, last = history.run[0], history.run[-1]
    return {_END: (last,)} | ({_BEFORE: (first,), _CHANGE: (last, first)} if len(history.run) > 1 else {})


def attention_scores(history: AttentionHistory) -> dict[str, float]:
    """Return each reading of each pattern at each moment by its name; a pattern that no text has is left out."""
    found = {}
    for moment, records in moments(history).items():
        for pattern, reading in product(PATTERNS, READINGS):
            columns = [reading_columns(record.sums, pattern, reading) for record in records]
            if all(count.any() for _, count in columns):
                values = [float(total.sum() / count.sum()) for total, count in columns]
                found[_name(moment, pattern, reading)] = values[0] - sum(values[1:])
    return found


def attention_differences(
    histories: Sequence[AttentionHistory], evaluations: Sequence[Sequence[EvalArtefact]]
) -> Iterator[Difference]:
    """Yield the differences of two runs, over the prompts that both have answered at all evaluations of a moment.

    ``evaluations`` are the first and the last of each run, whose rows say which prompts attention was read of. Left out
    is what fewer than two prompts have.
    """
    ways = [moments(history) for history in histories]
    for moment in (name for name in ways[0] if name in ways[1]):
        which = {_END: (-1,), _BEFORE: (0,), _CHANGE: (-1, 0)}[moment]
        records = [*ways[0][moment], *ways[1][moment]]
        answers = [run[place] for run in evaluations for place in which]
        parts = paired_sums([record.sums for record in records], answers)
        for pattern, reading in product(PATTERNS, READINGS):
            columns = [reading_columns(part, pattern, reading) for part in parts]
            if min((count > 0).sum() for _, count in columns) >= 2:
                yield _difference(_name(moment, pattern, reading), columns)


def largest_of_each_pattern(found: Iterable[_Found], size: Callable[[_Found], float]) -> list[_Found]:
    """Return of each pattern the difference of the largest size, in the order of the patterns.

    They are not ranked across patterns: masses have no unit, and entropies are in nats.
    """
    largest: dict[str, _Found] = {}
    for one in found:
        title = one.quantity.partition(": ")[2].partition(", ")[0]
        if title not in largest or size(one) > size(largest[title]):
            largest[title] = one
    return list(largest.values())


def paired_sums(sums: Sequence[PatternSums], evaluations: Sequence[EvalArtefact]) -> list[PatternSums]:
    """Return the sums of the prompts that all have, in one order; ``evaluations`` are those that attention was read in.

    Raises:
        ValueError: attention was read of more texts than an evaluation has.
    """
    read = [answers.select(_read_rows(answers, one)) for answers, one in zip(evaluations, sums, strict=True)]
    pairs = paired_rows(*read)
    return [
        PatternSums(total=one.total[:, rows], count=one.count[:, rows]) for one, rows in zip(sums, pairs.T, strict=True)
    ]


def heads_told_apart(first: PatternSums, second: PatternSums, pattern: str) -> Bool[np.ndarray, "layer head"] | None:
    """Return the heads whose interval of second - first excludes 0; the texts of both answer the same prompts.

    None where the two trunks do not have the same heads, or too many, or too few texts have the pattern.
    """
    place = PATTERNS.index(pattern)
    shape = first.total.shape[2:]
    if shape != second.total.shape[2:] or np.prod(shape) > MAX_HEADS_WITH_INTERVALS:
        return None
    if min((sums.count[place] > 0).sum() for sums in (first, second)) < 2:
        return None
    apart = np.zeros(shape, dtype=bool)
    for layer, head in np.ndindex(*shape):
        before, after = ((sums.total[place, :, layer, head], sums.count[place]) for sums in (first, second))
        interval = paired_ratio_difference(after, before, generator=0, num_resamples=1000)
        apart[layer, head] = interval.low > 0 or interval.high < 0
    return apart


def _read_rows(evaluation: EvalArtefact, sums: PatternSums) -> Int[np.ndarray, " row"]:
    """Return the rows whose attention was read: the first ones in which the policy acted."""
    number = sums.count.shape[1]
    acted = np.flatnonzero(evaluation.action_mask.any(axis=1))[:number]
    if len(acted) < number:
        raise ValueError(
            f"attention was read of {number} texts, but the evaluation beside it has {len(acted)}: they are not of one "
            "run. Run it again."
        )
    return acted


def _name(moment: str, pattern: str, reading: str) -> str:
    called = _LOWEST if (pattern, reading) == ("entropy", READINGS[1]) else reading
    return f"{moment}: {TITLES[pattern]}, {called}"


def reading_columns(sums: PatternSums, pattern: str, reading: str) -> tuple[_Column, _Column]:
    """Return each text's sum of a reading, and how many queries it is over."""
    place = PATTERNS.index(pattern)
    total, count = sums.total[place], sums.count[place].astype(np.float64)
    if reading == "all heads":
        return total.mean(axis=(1, 2)), count
    heads = total.reshape(len(total), -1)
    mean = heads.sum(axis=0)
    return heads[:, mean.argmin() if pattern == "entropy" else mean.argmax()], count


def _difference(name: str, columns: Sequence[tuple[_Column, _Column]]) -> Difference:
    """Return a difference of two runs, whose columns are one for each moment of the first, then of the second."""
    half = len(columns) // 2
    signs = np.array([-1.0, *[1.0] * (half - 1), 1.0, *[-1.0] * (half - 1)])

    def contrast(totals: Float[np.ndarray, "resample moment"]) -> Float[np.ndarray, " resample"]:
        with np.errstate(invalid="ignore", divide="ignore"):  # nothing counted in a resample says nothing
            return (totals[:, ::2] / totals[:, 1::2]) @ signs

    sums = np.stack([column for pair in columns for column in pair], axis=1)
    sums = sums[(sums[:, 1::2] > 0).any(axis=1)]
    values = [float(total.sum() / count.sum()) for total, count in columns]
    first, second = (values[start] - sum(values[start + 1 : start + half]) for start in (0, half))
    return Difference(
        name, first, second, sums_interval(sums, contrast, generator=0, num_resamples=2000, unit="prompt")
    )
