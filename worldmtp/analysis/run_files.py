"""What a run directory holds, what it lacks, and where its time went.

    <run>/metrics.jsonl       the run's record
    <run>/sft/metrics.jsonl   that of its warm start
    <run>/artefacts/          evaluations, a pair of npz and json each
    <run>/attention/          patterns of attention, an npz an evaluation; <run>/sft/attention/ of the warm start
    <run>/replies/            imagined episodes and answers foretold, where the run had any
    <run>/truth/              what heads say beside a law that is known, an npz an evaluation
    <run>/summary.json        the closing table
    <run>/config.yaml         the resolved configuration

Every one of them may be missing or damaged: the report shows what is there and says what is not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from jaxtyping import Float

from worldmtp.analysis.artefacts import ArtefactError, EvalArtefact, artefact_names, load_artefact
from worldmtp.analysis.attention_files import AttentionHistory, load_history
from worldmtp.analysis.replies import ReplyArtefact, load_replies
from worldmtp.analysis.reply_turns import ReplyTurns, load_turns
from worldmtp.analysis.summary import SUMMARY_FILE, RunSummary, read_summary
from worldmtp.analysis.truth import Truth, load_truths
from worldmtp.analysis.value_truth import ExactValues, load_values
from worldmtp.statistics import Interval
from worldmtp.tracking.writers import METRICS_FILE, read_records

_Evaluation = TypeVar("_Evaluation")

ARTEFACT_DIRECTORY = "artefacts"
CONFIG_FILE = "config.yaml"
WARM_START_DIRECTORY = "sft"
_NO_WARM_START = "start"
"""The evaluation before PPO of a run without one; after one it is called ``warm_start``."""
STARTS = (_NO_WARM_START, "warm_start")
"""Names of evaluations before the first iteration."""
_PHASES = ("rollout", "env", "world_model", "imagination", "update")
_TITLES = {
    "rollout": "acting",
    "env": "environment with scoring",
    "world_model": "world model",
    "imagination": "imagination",
    "update": "PPO update",
}
RUN_FILES = (CONFIG_FILE, METRICS_FILE, SUMMARY_FILE, ARTEFACT_DIRECTORY)
"""A directory with none of them holds no run."""


@dataclass(frozen=True)
class Series:
    """A metric over steps; values that were not finite are NaN."""

    steps: Float[np.ndarray, " point"]
    values: Float[np.ndarray, " point"]

    def __len__(self) -> int:
        return len(self.steps)

    def at(self, step: float) -> float | None:
        """Return the last value logged at a step; None where there is none, or it was not finite."""
        found = self.values[self.steps == step]
        return float(found[-1]) if len(found) and np.isfinite(found[-1]) else None


@dataclass(frozen=True)
class Spread:
    """A logged distribution over steps: its quantiles 0, .1, .5, .9 and 1."""

    steps: Float[np.ndarray, " point"]
    quantiles: Float[np.ndarray, "point 5"]


@dataclass(frozen=True)
class RunSteps:
    """What the steps after a warm start count: tokens of the environment, or optimiser steps of a trainer of TRL's.

    Attributes:
        stage: what is done in them.
        unit: of a step.
    """

    stage: str = "RL"
    unit: str = "tokens"


@dataclass(frozen=True)
class RunFiles:
    """The readable part of a run directory; ``problems`` names the rest, a sentence each.

    ``spreads`` and ``warm_start_spreads`` are the histograms of the run and of its warm start.
    """

    run_dir: Path
    metrics: dict[str, Series]
    warm_start: dict[str, Series]
    spreads: dict[str, Spread]
    warm_start_spreads: dict[str, Spread]
    artefacts: dict[str, EvalArtefact]
    attention: AttentionHistory
    replies: ReplyArtefact | None
    reply_turns: ReplyTurns | None
    truths: dict[str, Truth]
    exact_values: dict[str, ExactValues]
    summary: RunSummary | None
    config: str | None
    problems: tuple[str, ...]

    @property
    def steps(self) -> RunSteps:
        """Return what the run's steps count, by its config; without one they are taken for tokens."""
        trainer = known_values(self.config).get("post_training.trainer", "None")
        return RunSteps() if trainer == "None" else RunSteps(trainer.upper(), "steps")


def read_run(run_dir: Path) -> RunFiles:
    """Read everything a report can show.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    if not run_dir.is_dir():
        raise FileNotFoundError(f"No run directory at {run_dir}; pass the folder that a run printed when it started.")
    problems: list[str] = []
    config = None
    config_path = run_dir / CONFIG_FILE
    if config_path.is_file():
        config = config_path.read_text(encoding="utf-8", errors="replace")
    else:
        problems.append(f"{CONFIG_FILE} is missing: the configuration cannot be shown.")
    summary = _summary(run_dir / SUMMARY_FILE, problems)
    artefacts = _artefacts(run_dir / ARTEFACT_DIRECTORY, problems)
    logged = _records(run_dir / METRICS_FILE, problems, "there are no learning curves and no time breakdown")
    warm: list[dict[str, Any]] = []
    if _NO_WARM_START not in artefacts:
        warm = _records(run_dir / WARM_START_DIRECTORY / METRICS_FILE, problems, "the warm start is not shown")
    # In the order of the headline table; what it does not name comes after. Without it, the first comes first.
    in_table = [arm.artefact for arm in summary.arms] if summary is not None else STARTS
    truths = load_truths(run_dir, problems)
    replies = _read(load_replies, run_dir, problems, "Imagined episodes")
    return RunFiles(
        run_dir=run_dir,
        metrics=series_by_tag(logged),
        warm_start=series_by_tag(warm),
        spreads=spreads_by_tag(logged),
        warm_start_spreads=spreads_by_tag(warm),
        artefacts=_in_order(artefacts, in_table),
        attention=load_history(run_dir, WARM_START_DIRECTORY, problems),
        replies=replies,
        reply_turns=_turns_of(replies, _read(load_turns, run_dir, problems, "Answers of worlds"), problems),
        truths=_in_order(truths, in_table),
        exact_values=load_values(run_dir, problems),
        summary=summary,
        config=config,
        problems=tuple(problems),
    )


def _turns_of(replies: ReplyArtefact | None, turns: ReplyTurns | None, problems: list[str]) -> ReplyTurns | None:
    """Return the answers if they are of the conversations that the replies are of: each is written by itself."""
    if replies is None or turns is None or len(replies.tokens) == len(turns.newest.group):
        return turns
    problems.append(
        f"Answers of worlds are left out: they are of {len(turns.newest.group)} conversations, and the replies beside "
        f"them of {len(replies.tokens)}, as where a run was stopped between the two; resume it to have both again."
    )
    return None


def _in_order(found: Mapping[str, _Evaluation], first: Sequence[str]) -> dict[str, _Evaluation]:
    """Return evaluations by name, those of the headline table first and in its order."""
    return {name: found[name] for name in dict.fromkeys([*first, *found]) if name in found}


def series_by_tag(records: list[dict[str, Any]]) -> dict[str, Series]:
    """Return the scalars of a metrics file by tag; null, which stands for a value that was not finite, becomes NaN."""
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for tag, value in record.items():
            # Tags have a slash; step, time_seconds and the records of texts and pictures have none.
            if "/" in tag:
                points.setdefault(tag, []).append((float(record["step"]), np.nan if value is None else float(value)))
    return {
        tag: Series(steps=np.array([step for step, _ in pairs]), values=np.array([value for _, value in pairs]))
        for tag, pairs in points.items()
    }


def logged_interval(logged: Mapping[str, Series], tag: str, step: float | None = None) -> Interval | None:
    """Return a number that was logged with the ends of its 90 % interval, at a step, by default its last.

    How many sequences it is of the log does not say: n is 0. None where one of the three is not there.
    """
    found = [logged.get(f"{tag}{end}") for end in ("", "_lo90", "_hi90")]
    if any(series is None or not len(series) for series in found):
        return None
    ends = [series.at(float(series.steps[-1]) if step is None else step) for series in found if series is not None]
    if None in ends:
        return None
    middle, low, high = (float(end) for end in ends if end is not None)
    return Interval(middle, low, high, level=0.9, unit="sequence", method="bootstrap, as logged", n=0)


def spreads_by_tag(records: list[dict[str, Any]]) -> dict[str, Spread]:
    """Return the histograms of a metrics file by tag; those without a finite value are left out."""
    points: dict[str, list[tuple[float, list[float]]]] = {}
    for record in records:
        for tag, histogram in record.get("histogram", {}).items():
            if histogram["quantiles"]:
                points.setdefault(tag, []).append((float(record["step"]), histogram["quantiles"]))
    return {
        tag: Spread(np.array([step for step, _ in found]), np.array([quantiles for _, quantiles in found]))
        for tag, found in points.items()
    }


@dataclass(frozen=True)
class TimeBreakdown:
    """Mean seconds of an iteration, and the share of each phase in it."""

    iteration_seconds: float
    shares: dict[str, float]

    def __str__(self) -> str:
        parts = ", ".join(f"{_TITLES[phase]} {share:.1%}" for phase, share in self.shares.items() if share)
        return f"an iteration took {self.iteration_seconds:.2f} s: {parts}"


def time_breakdown(records: Sequence[Mapping[str, Any]]) -> TimeBreakdown | None:
    """Return the breakdown over all iterations in a log; None if there are none."""
    timed = [record for record in records if record.get("time/total_seconds")]
    if not timed:
        return None
    total = float(np.mean([record["time/total_seconds"] for record in timed]))
    means = {phase: float(np.mean([record.get(f"time/{phase}_seconds", 0.0) for record in timed])) for phase in _PHASES}
    return TimeBreakdown(total, {phase: seconds / total for phase, seconds in means.items()})


def _records(path: Path, problems: list[str], consequence: str) -> list[dict[str, Any]]:
    name = path.relative_to(path.parents[1]) if path.parent.name == WARM_START_DIRECTORY else path.name
    if not path.is_file():
        problems.append(f"{name} is missing: {consequence}.")
        return []
    try:
        return read_records(path)
    except ValueError as error:
        problems.append(f"{name} cannot be read: {error}")
        return []


def _artefacts(directory: Path, problems: list[str]) -> dict[str, EvalArtefact]:
    names = artefact_names(directory)
    if not names:
        problems.append(f"{ARTEFACT_DIRECTORY}/ holds no evaluation: nothing can be said of predicted tokens.")
    artefacts = {}
    for name in names:
        try:
            artefacts[name] = load_artefact(directory, name)
        except ArtefactError as error:
            problems.append(f"The evaluation {name!r} cannot be read: {error}")
    return artefacts


def _read(
    load: Callable[[Path], _Evaluation | None], run_dir: Path, problems: list[str], name: str
) -> _Evaluation | None:
    try:
        return load(run_dir)
    except ArtefactError as error:
        problems.append(f"{name} cannot be read: {error}")
        return None


def _summary(path: Path, problems: list[str]) -> RunSummary | None:
    if not path.is_file():
        problems.append(f"{path.name} is missing: the headline table cannot be shown.")
        return None
    try:
        return read_summary(path)
    except ValueError as error:
        problems.append(str(error))
        return None


def config_values(config: str | None) -> dict[str, str]:
    """Return every value of a run's config, YAML, as text by its dotted key; none of a config that is not there.

    Raises:
        yaml.YAMLError: it is damaged, or no mapping, as a file that was cut short may be.
    """
    values = {} if config is None else yaml.safe_load(config) or {}
    if not isinstance(values, dict):
        raise yaml.YAMLError(f"a config is a mapping of keys to values, and this one is {values!r}.")
    return _flat(values)


def known_values(config: str | None) -> dict[str, str]:
    """Return the values of a config by their dotted keys; none of a config that is missing or damaged."""
    try:
        return config_values(config)
    except yaml.YAMLError:
        return {}


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    values: dict[str, str] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            values |= _flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = str(value)
    return values
