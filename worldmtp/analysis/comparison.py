"""Two runs on the same held-out prompts: paired differences, and answers side by side with what changed marked.

Answers are paired by their prompts, and every difference is second - first. What is resampled is the prompt: the same
prompt brings its answer of both runs, so what prompts have in common cancels. What the trunks look at stands beside it
(``worldmtp.analysis.attention_comparison``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from worldmtp.analysis import metrics
from worldmtp.analysis.artefacts import EvalArtefact, imagined_strip, token_strip
from worldmtp.analysis.attention_comparison import attention_differences, largest_of_each_pattern, paired_sums
from worldmtp.analysis.attention_figures import curve_comparison, head_comparison
from worldmtp.analysis.attention_files import AttentionHistory
from worldmtp.analysis.attention_patterns import PatternSums
from worldmtp.analysis.comparability import comparable, why_no_prompts
from worldmtp.analysis.differences import Difference, aligned, paired_rows, prompt_of, text_of
from worldmtp.analysis.figures import picture
from worldmtp.analysis.pages import render_page
from worldmtp.analysis.return_agreement import known_roots
from worldmtp.analysis.run_files import RunFiles, RunSteps, known_values, read_run
from worldmtp.analysis.verdicts import untaught
from worldmtp.atomic_files import write_text
from worldmtp.statistics import paired_ratio_difference
from worldmtp.tracking.strips import StripBlock, TokenStrip, strip_blocks

_STRIPS = 8
_STRIP_CHARACTERS = 72
_SETTINGS = 8
"""Differing settings that the command line shows."""
_NOT_THERE = "-"


@dataclass(frozen=True)
class Comparison:
    """What two runs have in common, and how they differ there.

    Attributes:
        names: of the runs, as short as tells them apart.
        settings: what their configs do not have in common, a key with its value in either.
        num_prompts: held-out prompts that both answered.
        differences: paired by these.
        page: with all of it.
        attention: differences of what the trunks look at, over the prompts whose attention both have read.
        notes: what is comparable and what is not.
    """

    names: tuple[str, str]
    settings: tuple[tuple[str, str, str], ...]
    num_prompts: int
    differences: tuple[Difference, ...]
    page: Path
    attention: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        looks = largest_of_each_pattern(self.attention, lambda one: abs(one.difference.estimate))
        found = [*self.differences, *looks]
        lines = aligned([("", *self.names, "second - first [90 %]", ""), *(one.cells() for one in found)])
        if len(looks) < len(self.attention):
            lines.append(f"of attention each pattern's largest difference; the page has all {len(self.attention)}")
        one, other = self.names
        told = [f"{key}: {first} in {one}, {second} in {other}" for key, first, second in self.settings]
        if len(told) > _SETTINGS:
            told = [*told[:_SETTINGS], f"and {len(told) - _SETTINGS} more settings differ, which the page has"]
        told = [*(told or ["no setting is known to differ"]), *(f"note: {note}" for note in self.notes)]
        return "\n".join([*told, *lines, f"{self.num_prompts} held-out prompts, paired", str(self.page)])


def compare_runs(first_dir: Path, second_dir: Path) -> Comparison:
    """Compare the last evaluations of two runs; the page goes into the directory of the second.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: a run has no evaluation, or fewer than two prompts are in both.
    """
    runs = read_run(first_dir), read_run(second_dir)
    first, second = (_last(run) for run in runs)
    pairs = paired_rows(first, second)
    if len(pairs) < 2:
        raise ValueError(
            f"{first_dir} and {second_dir} have {len(pairs)} held-out prompts in common; "
            f"{why_no_prompts(*(run.config for run in runs))}"
        )
    num_answered = [len(one) for one in (first, second)]
    first, second = first.select(pairs[:, 0]), second.select(pairs[:, 1])
    taught = all(list(run.artefacts)[-1] not in untaught(run) for run in runs)
    names = _names(first_dir, second_dir)
    settings = differing_settings(*(run.config for run in runs))
    found = tuple(differences(first, second, with_imagined=taught))
    attention = _Attention.of(runs)
    can_compare = comparable(*(run.config for run in runs))
    page = second_dir / f"comparison_with_{first_dir.resolve().name}.html"
    content = render_page(
        "comparison.html.jinja",
        names=names,
        settings=settings,
        num_prompts=len(pairs),
        num_answered=num_answered,
        notes=can_compare.notes,
        rows=[one.cells() for one in found],
        details=[asdict(one.difference) for one in found],
        attention=attention.shown(names, can_compare.other_heads),
        without_imagined=_without_imagined(runs, (first, second), names),
        texts=[_text(first, second, row) for row in _most_changed(first, second)],
        num_same=int(sum(_answer(first, row) == _answer(second, row) for row in range(len(first)))),
    )
    write_text(page, content)
    return Comparison(names, settings, len(pairs), found, page, attention.differences, can_compare.notes)


def differing_settings(first: str | None, second: str | None) -> tuple[tuple[str, str, str], ...]:
    """Return the keys of two configs, YAML, whose values are not the same, with both: what the runs are, beside a date.

    A run without a config has no settings, and neither has one whose config is damaged.
    """
    one, other = known_values(first), known_values(second)
    return tuple(
        (key, one.get(key, _NOT_THERE), other.get(key, _NOT_THERE))
        for key in dict.fromkeys([*one, *other])
        if one.get(key) != other.get(key)
    )


def differences(first: EvalArtefact, second: EvalArtefact, *, with_imagined: bool) -> Iterator[Difference]:
    """Yield the differences of two evaluations whose rows answer the same prompts.

    Left out is what fewer than two prompts of a run have, as a depth that all other answers are too short for.
    ``with_imagined`` is False where one of them imagined with heads that had learnt nothing of returns.
    """
    ones = np.ones(len(first))
    pairs = {
        "exact match, sampled": [(one.exact.astype(np.float64), ones) for one in (first, second)],
        "return": [(one.returns.astype(np.float64), ones) for one in (first, second)],
        "tokens of the answer": [(one.action_mask.sum(axis=1), ones) for one in (first, second)],
    }
    rooted = [metrics.rooted_predictions(one) for one in (first, second)]
    by_depth = {
        "acceptance": metrics.acceptance,
        "top-1": metrics.agreement,
        "path consistency": metrics.path_consistency,
    }
    for name, sums_of in by_depth.items():
        sums = [sums_of(one) for one in rooted]
        for k in range(2, 1 + min(one.total.shape[1] for one in sums)):
            pairs[f"{name}, depth {k}"] = [(one.total[:, k - 1], one.count[:, k - 1]) for one in sums]
    if with_imagined:
        pairs["imagined less realized return"] = [_bias(one) for one in (first, second)]
    for name, (before, after) in pairs.items():
        if min((before[1] > 0).sum(), (after[1] > 0).sum()) < 2:
            continue
        interval = paired_ratio_difference(after, before, generator=0, num_resamples=2000)
        first_mean, second_mean = (float(total.sum() / count.sum()) for total, count in (before, after))
        yield Difference(name, first_mean, second_mean, interval)


def marked(strip: TokenStrip, other: TokenStrip, blocks: Sequence[StripBlock]) -> tuple[StripBlock, ...]:
    """Return a strip's blocks with the cells marked whose token is another one in the other strip, or not there."""
    rows = {"realized": other.tokens, **{row.label: row.tokens for row in other.rows}}
    own = {"realized": strip.tokens, **{row.label: row.tokens for row in strip.rows}}
    found, start = [], 0
    for block in blocks:
        lines = []
        for label, cells in block.lines:
            theirs, mine = rows.get(label, ()), own[label]
            changed = [
                mine[place] is not None and (place >= len(theirs) or theirs[place] != mine[place])
                for place in range(start, start + len(cells))
            ]
            lines.append((label, tuple(replace(cell, is_changed=it) for cell, it in zip(cells, changed, strict=True))))
        found.append(StripBlock(tuple(lines), block.widths))
        start += len(block.widths)
    return tuple(found)


@dataclass(frozen=True)
class _Attention:
    """What attention of two runs can be compared in; without differences where one of them has read none."""

    histories: tuple[AttentionHistory, ...]
    steps: tuple[RunSteps, ...]
    last: tuple[PatternSums, ...]
    differences: tuple[Difference, ...]

    @classmethod
    def of(cls, runs: Sequence[RunFiles]) -> "_Attention":
        """Compare the attention of the evaluations that the runs have kept."""
        evaluations = [list(run.artefacts.values()) for run in runs]
        # A run that was stopped has kept the first alone, and may have read attention later.
        histories = tuple(
            run.attention if len(kept) > 1 else replace(run.attention, run=run.attention.run[:1])
            for run, kept in zip(runs, evaluations, strict=True)
        )
        steps = tuple(run.steps for run in runs)
        if not all(history.run for history in histories):
            return cls(histories, steps, (), ())
        last = paired_sums([one.run[-1].sums for one in histories], [kept[-1] for kept in evaluations])
        return cls(histories, steps, tuple(last), tuple(attention_differences(histories, evaluations)))

    def shown(self, names: tuple[str, str], other_heads: str | None) -> dict[str, object] | None:
        """Return what the page shows; ``other_heads`` is why a number is another head in the other run."""
        if not self.differences:
            return None
        if other_heads is None and self.last[0].total.shape[2:] != self.last[1].total.shape[2:]:
            other_heads = "they do not have the same number of layers and heads"
        return {
            "rows": [one.cells() for one in self.differences],
            "heads": picture(head_comparison(*self.last, same_heads=other_heads is None)),
            "other_heads": other_heads,
            "curves": picture(curve_comparison(self.histories, names, self.steps)),
            "num_prompts": self.last[0].count.shape[1],
        }


def _last(run: RunFiles) -> EvalArtefact:
    if not run.artefacts:
        raise ValueError(f"{run.run_dir} has no evaluation under artefacts/; compare runs that are done.")
    return list(run.artefacts.values())[-1]


def _names(first: Path, second: Path) -> tuple[str, str]:
    """Return the last parts of two paths that tell them apart."""
    ways = first.resolve().parts, second.resolve().parts
    length = next((n for n in range(1, max(map(len, ways))) if ways[0][-n:] != ways[1][-n:]), 1)
    return "/".join(ways[0][-length:]), "/".join(ways[1][-length:])


def _answer(artefact: EvalArtefact, row: int) -> str:
    return text_of(artefact, row, int(artefact.prompt_length[row]), int(artefact.attention_mask[row].sum()))


def _bias(artefact: EvalArtefact) -> tuple[np.ndarray, np.ndarray]:
    known = known_roots(artefact)
    gap = np.where(known, artefact.imagined_return - artefact.realized_return, 0.0)
    return gap.sum(axis=1), known.sum(axis=1)


def _most_changed(first: EvalArtefact, second: EvalArtefact) -> list[int]:
    """Return prompts by how much their return changed, those whose answer changed at all before the others."""
    change = np.abs(first.returns - second.returns)
    order = sorted(range(len(first)), key=lambda row: (-change[row], _answer(first, row) == _answer(second, row), row))
    return order[:_STRIPS]


def _without_imagined(runs: Sequence[RunFiles], evaluations: Sequence[EvalArtefact], names: Sequence[str]) -> list[str]:
    """Return a sentence for each run whose heads imagined none of the answers, which says what it imagined instead."""
    told = []
    for run, evaluation, name in zip(runs, evaluations, names, strict=True):
        if np.isfinite(evaluation.imagined_token_prob).any():
            continue
        if run.replies is not None:
            told.append(f"{name} imagined whole episodes by its model of replies; its own report shows them.")
        else:
            told.append(f"The heads of {name} imagined none of these answers.")
    return told


def _text(first: EvalArtefact, second: EvalArtefact, row: int) -> dict[str, object]:
    """Return a prompt with both runs' strips, predicted and imagined."""
    sides: list[dict[str, object]] = []
    for own, other in ((first, second), (second, first)):
        is_imagined = np.isfinite(own.imagined_token_prob[row]).any()
        sides.append(
            {
                "total": f"{own.returns[row]:.3g}",
                "exact": bool(own.exact[row]),
                "predicted": _marked_blocks(token_strip(own, row), token_strip(other, row)),
                "imagined": _marked_blocks(imagined_strip(own, row), imagined_strip(other, row)) if is_imagined else (),
            }
        )
    return {
        "prompt": prompt_of(first, row),
        "sides": sides,
        "same": _answer(first, row) == _answer(second, row),
        "is_imagined": any(side["imagined"] for side in sides),
    }


def _marked_blocks(strip: TokenStrip, other: TokenStrip) -> tuple[StripBlock, ...]:
    return marked(strip, other, strip_blocks(strip, _STRIP_CHARACTERS))
