"""A study from its preparation to its summary, in a directory from which it can be taken up again.

    shared/ -> arms/<name>_seed<k>.json -> study.png, study.md, study.json

Arms with a result are not run again, and the summary is made from the saved results, so a killed study ends with the
same summary as an uninterrupted one. A study with all of its results is summarised again, without its preparation.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worldmtp.atomic_files import write_bytes, write_text
from worldmtp.studies.protocol import Arm, Study, StudySummary
from worldmtp.studies.workers import Failure, result_path, run_here, run_in_workers

SHARED = "shared"
ARMS = "arms"
STUDY_FILE = "study.json"
TEXT_FILE = "study.md"
FIGURE_FILE = "study.png"

StageReport = Callable[[str, float, str], None]
STAGES = ("prepare", "arms")
"""What ``report`` is called with, beside how far the stage is and a note."""


class StudyError(RuntimeError):
    """Arms failed; the message names them and what each died of."""


def run_study(
    study: Study, run_dir: Path, num_jobs: int, report: StageReport, setup: Callable[[], None] | None = None
) -> StudySummary:
    """Prepare, run the arms that have no result yet, ``num_jobs`` at a time, and summarise them all.

    With one job the arms run in this process. With more, each runs in a process of its own with one thread; there
    ``setup`` is called first, and both it and the study are pickled.

    Raises:
        ValueError: no arms, two alike, fewer than one job, or a result that cannot be read.
        StudyError: arms failed. The others' results stay, and a traceback of each stands in ``arms/*.error.txt``.
    """
    if num_jobs < 1:
        raise ValueError(f"num_jobs={num_jobs} must be at least 1.")
    arms = _distinct(study.arms())
    shared, results = run_dir / SHARED, run_dir / ARMS
    for directory in (shared, results):
        directory.mkdir(parents=True, exist_ok=True)
    missing = [arm for arm in arms if not result_path(results, arm).exists()]
    if missing:
        progress = _Progress(len(arms), len(arms) - len(missing), report)
        study.prepare(shared, progress.prepare)
        progress.show()
        if num_jobs == 1:
            failures = run_here(study, missing, shared, results, progress.arm)
        else:
            workers = min(num_jobs, len(missing))
            failures = run_in_workers(study, missing, shared, results, progress.arm, workers, setup)
        _keep_errors(results, missing, failures)
        if failures:
            raise StudyError(_message(failures, len(arms), results))
    found = [_read_result(result_path(results, arm)) for arm in arms]
    summary = study.summarize(found)
    _write_summary(run_dir, summary, arms, found)
    return summary


def read_headline(run_dir: Path) -> float:
    """The headline of a study that was summarised."""
    return float(json.loads((run_dir / STUDY_FILE).read_text(encoding="utf-8"))["headline"])


class _Progress:
    """How far all arms are together; those that were there at the start count as done from the first word on."""

    def __init__(self, num_arms: int, num_there: int, report: StageReport) -> None:
        self._num_arms = num_arms
        self._num_there = num_there
        self._report = report
        self._fractions: dict[Arm, float] = {}

    def prepare(self, fraction: float, note: str) -> None:
        if self._num_there:
            self.show(note)
        else:
            self._report("prepare", fraction, note)

    def arm(self, arm: Arm, fraction: float, note: str) -> None:
        self._fractions[arm] = fraction
        self.show(f"{arm.label} {note or 'done'}")

    def show(self, note: str = "") -> None:
        done = self._num_there + sum(self._fractions.values())
        num_done = self._num_there + sum(fraction == 1 for fraction in self._fractions.values())
        self._report("arms", min(1.0, done / self._num_arms), f"{num_done}/{self._num_arms} arms  {note}".rstrip())


def _distinct(arms: list[Arm]) -> list[Arm]:
    labels = [arm.label for arm in arms]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice or not arms:
        raise ValueError(f"a study needs at least one arm, each once; got {labels}, of which {twice} more than once.")
    return arms


def _keep_errors(results: Path, tried: list[Arm], failures: list[Failure]) -> None:
    for arm in tried:
        _error_path(results, arm).unlink(missing_ok=True)
    for failure in failures:
        text = f"{failure.reason}\n\n{failure.traceback}"
        write_text(_error_path(results, failure.arm), text)


def _error_path(results: Path, arm: Arm) -> Path:
    return results / f"{arm.label}.error.txt"


def _message(failures: list[Failure], num_arms: int, results: Path) -> str:
    return "\n".join(
        [
            f"{len(failures)} of {num_arms} arms failed:",
            *(f"  {failure.arm.label}: {failure.reason}" for failure in failures),
            f"Tracebacks are in {results}/*.error.txt. The other arms' results stay and are not run again.",
        ]
    )


def _read_result(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no result of an arm ({error}); delete it to run that arm again.") from error
    assert isinstance(result, dict)
    return result


def _write_summary(run_dir: Path, summary: StudySummary, arms: list[Arm], results: list[dict[str, Any]]) -> None:
    if summary.figure is not None:
        write_bytes(run_dir / FIGURE_FILE, summary.figure)
    write_text(run_dir / TEXT_FILE, f"# {summary.title}\n\n{summary.markdown.rstrip()}\n")
    content = {
        "title": summary.title,
        "headline": summary.headline,
        "results": {arm.label: result for arm, result in zip(arms, results, strict=True)},
    }
    write_text(run_dir / STUDY_FILE, json.dumps(content, indent=1))
