"""Two sweeps, paired by seed: what one setting does to everything that a run ends with.

A job of the first sweep is paired with the job of the second that has the same seed, the same environment and the same
value of whatever else both sweeps vary; what is the same within each sweep and not between them is what they are
compared in. Of each quantity: both interquartile means, the mean paired difference (the seed is resampled; Student's t
below ten), and the probability that a random seed of the second beats one of the first. Every pair is shown. What
the trunks look at stands beside it, without that probability, since no seed is better in it than another.

Left out: answers side by side, which two runs have (``worldmtp.analysis.comparison``).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

import numpy as np
import yaml
from matplotlib.figure import Figure

from worldmtp.analysis.artefacts import ArtefactError
from worldmtp.analysis.attention_comparison import ONE_HEAD, attention_scores, largest_of_each_pattern
from worldmtp.analysis.attention_files import load_history
from worldmtp.analysis.differences import aligned
from worldmtp.analysis.figures import picture
from worldmtp.analysis.over_seeds import SeedEstimate, interquartile_mean, probability_of_improvement
from worldmtp.analysis.pages import render_page
from worldmtp.analysis.panels import ARM_COLOURS, INK, name_axes, panel_grid
from worldmtp.analysis.run_files import CONFIG_FILE, WARM_START_DIRECTORY, config_values
from worldmtp.analysis.summary import SUMMARY_FILE, ArmSummary, read_summary
from worldmtp.atomic_files import write_text
from worldmtp.statistics import Interval, paired_difference

_ALWAYS = ("env.id", "seed")
_NOT_THERE = "-"
_WITHOUT_BETTER = -1
"""Cells of a row but for the last, the probability that the second is better: of attention nothing is better."""
_DRAWN = ("exact match, greedy", "exact match, sampled", "realized return")
Point = tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """A run of a sweep that has come to its end: its settings, and the last row of its closing table."""

    directory: Path
    config: Mapping[str, str]
    arm: ArmSummary

    def quantities(self) -> dict[str, float]:
        """Return what the run ended with, by name; what was not measured is left out."""
        arm = self.arm
        found: dict[str, float | None] = {
            "exact match, greedy": arm.exact.estimate,
            "exact match, sampled": None if arm.exact_sampled is None else arm.exact_sampled.estimate,
            "realized return": arm.realized_return,
            "imagined return": arm.imagined_return,
        }
        found |= {f"acceptance, depth {k}": value for k, value in enumerate(arm.acceptance, start=1) if k > 1}
        return {name: value for name, value in found.items() if value is not None}

    def attention(self) -> dict[str, float]:
        """Return what its trunk looked at, by name; empty where that was not read.

        Raises:
            ArtefactError: a file of it cannot be read.
        """
        problems: list[str] = []
        history = load_history(self.directory, WARM_START_DIRECTORY, problems)
        if problems:
            raise ArtefactError(problems[0])
        return attention_scores(history)


@dataclass(frozen=True)
class SweepDifference:
    """A quantity over the pairs that have it in both; ``difference`` is None where there is one pair."""

    quantity: str
    values: Mapping[Point, tuple[float, float]]
    first: SeedEstimate
    second: SeedEstimate
    difference: Interval | None
    improvement: SeedEstimate

    @property
    def verdict(self) -> str:
        """Return which way it went, where the interval excludes 0."""
        if self.difference is None:
            return "one pair"
        return "higher" if self.difference.low > 0 else "lower" if self.difference.high < 0 else "not told apart"

    @property
    def size(self) -> float:
        """Return how large the mean difference over the pairs is, whichever way it went."""
        return abs(float(np.mean([second - first for first, second in self.values.values()])))


@dataclass(frozen=True)
class SweepComparison:
    """What two sweeps have in common, and how they differ there.

    Attributes:
        names: of the sweeps.
        settings: what is the same within each and not between them, a key with its value in either.
        keys: by which jobs are paired.
        differences: of each quantity.
        attention: of what the trunks look at.
        unpaired: directories of jobs that have no counterpart.
        page: with all of it.
    """

    names: tuple[str, str]
    settings: tuple[tuple[str, str, str], ...]
    keys: tuple[str, ...]
    differences: tuple[SweepDifference, ...]
    attention: tuple[SweepDifference, ...]
    unpaired: tuple[Path, ...]
    page: Path

    def __str__(self) -> str:
        looks = largest_of_each_pattern(self.attention, lambda one: one.size)
        seen = (_cells(one)[:_WITHOUT_BETTER] for one in looks)
        lines = aligned(
            [_header(self.names), *(_cells(one) for one in self.differences), *((*row, "") for row in seen)]
        )
        if len(looks) < len(self.attention):
            lines.append(f"of attention each pattern's largest difference; the page has all {len(self.attention)}")
        one, other = self.names
        told = [f"{key}: {first} in {one}, {second} in {other}" for key, first, second in self.settings]
        number = len(self.differences[0].values)
        pairs = f"{number} {'pair' if number == 1 else 'pairs'} by {', '.join(self.keys)}"
        alone = [f"without a counterpart: {path}" for path in self.unpaired]
        return "\n".join([*(told or ["no setting is known to differ"]), *lines, pairs, *alone, str(self.page)])


def compare_sweeps(first_dir: Path, second_dir: Path) -> SweepComparison:
    """Compare the jobs of two sweeps that are done; the page goes into the directory of the second.

    Raises:
        ValueError: no two jobs fit each other, or several of one sweep fit the same one.
    """
    sweeps = finished_jobs(first_dir), finished_jobs(second_dir)
    keys = tuple(dict.fromkeys([*_ALWAYS, *(key for key in _varied(sweeps[0]) if key in _varied(sweeps[1]))]))
    by_point = [
        _by_point(directory, jobs, keys) for directory, jobs in zip((first_dir, second_dir), sweeps, strict=True)
    ]
    points = [point for point in by_point[0] if point in by_point[1]]
    if not points:
        raise ValueError(
            f"{first_dir} and {second_dir} have no finished jobs of the same {', '.join(keys)}; {_way_to_pairs(sweeps)}"
        )
    names = first_dir.resolve().name, second_dir.resolve().name
    alone = [job.directory for jobs in by_point for point, job in jobs.items() if point not in points]
    pairs = [(by_point[0][point], by_point[1][point]) for point in points]
    comparison = SweepComparison(
        names,
        _settings(*sweeps),
        keys,
        differences=tuple(_differences([(one.quantities(), other.quantities()) for one, other in pairs], points)),
        attention=tuple(_differences([(one.attention(), other.attention()) for one, other in pairs], points)),
        unpaired=tuple(alone),
        page=second_dir / f"comparison_with_{names[0]}.html",
    )
    write_text(comparison.page, _page(comparison))
    return comparison


def _way_to_pairs(sweeps: Sequence[Sequence[Job]]) -> str:
    """Return what to change in two sweeps of which no jobs are pairs, to end an error message with."""
    tasks = [sorted({job.config.get("env.id", _NOT_THERE) for job in jobs}) for jobs in sweeps]
    if all(tasks) and not set(tasks[0]) & set(tasks[1]):
        return f"their tasks are others, {', '.join(tasks[0])} and {', '.join(tasks[1])}: compare sweeps of one task."
    return "sweep the same seeds in both, as seed=0,1,2,3,4."


def finished_jobs(sweep_dir: Path) -> list[Job]:
    """Return the runs right below a directory that have a config and a closing table, by name; others are left out."""
    found = []
    for path in sorted(sweep_dir.glob(f"*/{CONFIG_FILE}")):
        try:
            config = config_values(path.read_text(encoding="utf-8"))
            arms = read_summary(path.with_name(SUMMARY_FILE)).arms
        except (OSError, ValueError, yaml.YAMLError):  # not done, or damaged: the sweep's table shows it
            continue
        found.append(Job(path.parent, config, arms[-1]))
    return found


def _varied(jobs: Sequence[Job]) -> list[str]:
    """Return the keys whose values are not the same in all jobs."""
    keys = dict.fromkeys(key for job in jobs for key in job.config)
    return [key for key in keys if len({job.config.get(key, _NOT_THERE) for job in jobs}) > 1]


def _by_point(directory: Path, jobs: Sequence[Job], keys: Sequence[str]) -> dict[Point, Job]:
    found: dict[Point, Job] = {}
    for job in jobs:
        point = tuple(job.config.get(key, _NOT_THERE) for key in keys)
        if point in found:
            other = [key for key in _varied(jobs) if key not in keys]
            raise ValueError(
                f"{directory} has several jobs of {', '.join(f'{k}={v}' for k, v in zip(keys, point, strict=True))}: "
                f"it varies {', '.join(other) or 'nothing'}, which the other sweep does not. Compare sweeps of one arm "
                "each, or that vary the same."
            )
        found[point] = job
    return found


def _settings(first: Sequence[Job], second: Sequence[Job]) -> tuple[tuple[str, str, str], ...]:
    varied = {*_varied(first), *_varied(second)}
    one, other = first[0].config, second[0].config
    return tuple(
        (key, one.get(key, _NOT_THERE), other.get(key, _NOT_THERE))
        for key in dict.fromkeys([*one, *other])
        if key not in varied and one.get(key) != other.get(key)
    )


def _differences(
    found: Sequence[tuple[Mapping[str, float], Mapping[str, float]]], points: Sequence[Point]
) -> Iterator[SweepDifference]:
    for name in dict.fromkeys(name for one, other in found for name in one if name in other):
        values = {
            point: (one[name], other[name])
            for point, (one, other) in zip(points, found, strict=True)
            if name in one and name in other
        }
        columns = np.array(list(values.values()))
        scores = [_by_task(values, side) for side in (0, 1)]
        yield SweepDifference(
            quantity=name,
            values=values,
            first=interquartile_mean(scores[0], generator=0),
            second=interquartile_mean(scores[1], generator=0),
            difference=paired_difference(columns[:, 1], columns[:, 0], generator=0, unit="seed")
            if len(columns) > 1
            else None,
            improvement=probability_of_improvement(scores[0], scores[1], generator=0),
        )


def _by_task(values: Mapping[Point, tuple[float, float]], side: int) -> dict[str, np.ndarray]:
    """Return numbers by environment, the first of the keys that jobs are paired by."""
    tasks: dict[str, list[float]] = {}
    for point, pair in values.items():
        tasks.setdefault(point[0], []).append(pair[side])
    return {task: np.array(numbers) for task, numbers in tasks.items()}


def _header(names: tuple[str, str]) -> tuple[str, ...]:
    middle = (f"{name}, interquartile mean [90 %]" for name in names)
    return ("", *middle, "second - first, paired [90 %]", "", "P(second is better) [90 %]")


def _cells(one: SweepDifference) -> tuple[str, ...]:
    difference = _NOT_THERE if one.difference is None else str(one.difference)
    return one.quantity, str(one.first), str(one.second), difference, one.verdict, str(one.improvement)


def _page(comparison: SweepComparison) -> str:
    drawn = [one for one in comparison.differences if one.quantity in _DRAWN]
    strongest = [one for one in comparison.attention if one.quantity.endswith(ONE_HEAD)]
    rows = [
        [", ".join(point), *(cell for one in drawn for cell in _pair_cells(one, point))]
        for point in comparison.differences[0].values
    ]
    return render_page(
        "sweep_comparison.html.jinja",
        names=comparison.names,
        settings=comparison.settings,
        keys=comparison.keys,
        header=_header(comparison.names),
        rows=[_cells(one) for one in comparison.differences],
        num_pairs=len(comparison.differences[0].values),
        picture=picture(_figure(drawn)),
        attention_header=_header(comparison.names)[:_WITHOUT_BETTER],
        attention=[_cells(one)[:_WITHOUT_BETTER] for one in comparison.attention],
        attention_picture=picture(_figure(strongest)) if strongest else None,
        pair_header=[", ".join(comparison.keys), *(f"{one.quantity}, {side}" for one in drawn for side in ("1", "2"))],
        pairs=rows,
        unpaired=[str(path) for path in comparison.unpaired],
    )


def _pair_cells(one: SweepDifference, point: Point) -> list[str]:
    pair = one.values.get(point)
    return [_NOT_THERE, _NOT_THERE] if pair is None else [f"{value:.3f}" for value in pair]


def _figure(drawn: Sequence[SweepDifference]) -> Figure:
    """Plot every pair as a line from the first sweep to the second; the means are black."""
    figure, axes = panel_grid(len(drawn), columns=min(4, len(drawn)), cell=(9.2 / max(3, min(4, len(drawn))), 2.8))
    for ax, one in zip(axes, drawn, strict=True):
        columns = np.array(list(one.values.values()))
        tasks = list(dict.fromkeys(point[0] for point in one.values))
        for point, pair in one.values.items():
            colour = ARM_COLOURS[tasks.index(point[0]) % len(ARM_COLOURS)]
            ax.plot([0, 1], pair, color=colour, marker="o", ms=4, linewidth=1.2, alpha=0.7)
        ax.plot([0, 1], columns.mean(axis=0), color=INK, marker="D", ms=5, linewidth=1.8)
        ax.set_xticks([0, 1])
        ax.set_xticklabels(["first", "second"])
        ax.set_xlim(-0.25, 1.25)
        name_axes(ax, "\n".join(wrap(one.quantity[0].upper() + one.quantity[1:], 28)), "", "")
    return figure
