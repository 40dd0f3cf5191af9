"""A study from its preparation to its summary, in a directory from which it can be taken up again.

    shared/ -> arms/<name>_seed<k>.json -> study.png, study.md, study.json

Arms with a result are not run again, and the summary is made from the saved results, so a killed study ends with the
same summary as an uninterrupted one. A study with all of its results is summarised again, without its preparation.

Arms run in this process one after another, or in worker processes, each of which takes one arm after another. An arm
that raises, or whose process dies, is one failure among the others' results. Workers are spawned, not forked: threads
and devices do not survive a fork. They exit when the parent dies: their next message to it fails.
"""

import json
import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from worldmtp.atomic_files import write_bytes, write_text
from worldmtp.studies.protocol import Arm, Report, Study, StudySummary

SHARED = "shared"
ARMS = "arms"
STUDY_FILE = "study.json"
TEXT_FILE = "study.md"
FIGURE_FILE = "study.png"

ArmReport = Callable[[Arm, float, str], None]
StageReport = Callable[[str, float, str], None]
STAGES = ("prepare", "arms")
"""What ``report`` is called with, beside how far the stage is and a note."""


class StudyError(RuntimeError):
    """Arms failed; the message names them and their errors."""


@dataclass(frozen=True)
class Failure:
    """An arm without a result: the reason in one line, and the traceback where there is one."""

    arm: Arm
    reason: str
    traceback: str


def run_study(
    study: Study, run_dir: Path, num_jobs: int, report: StageReport, setup: Callable[[], None] | None = None
) -> StudySummary:
    """Prepare a study, run the arms without a result, ``num_jobs`` at a time, and summarise them all.

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
    missing = [arm for arm in arms if not _result_path(results, arm).exists()]
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
    found = [_read_result(_result_path(results, arm)) for arm in arms]
    summary = study.summarize(found)
    _write_summary(run_dir, summary, arms, found)
    return summary


def read_headline(run_dir: Path) -> float:
    """Return the headline of a study that was summarised."""
    return float(json.loads((run_dir / STUDY_FILE).read_text(encoding="utf-8"))["headline"])


def run_here(study: Study, arms: Sequence[Arm], shared: Path, results: Path, report: ArmReport) -> list[Failure]:
    """Run the arms in this process and return the failures."""
    failures: list[Failure] = []
    for arm in arms:
        failure = _attempt(study, arm, shared, results, partial(report, arm))
        if failure is None:
            report(arm, 1.0, "")
        else:
            failures.append(failure)
    return failures


def run_in_workers(
    study: Study,
    arms: Sequence[Arm],
    shared: Path,
    results: Path,
    report: ArmReport,
    num_workers: int,
    setup: Callable[[], None] | None,
) -> list[Failure]:
    """Run the arms in ``num_workers`` processes of one thread, which call ``setup`` first; return the failures."""
    waiting, at_work = deque(arms), dict[Connection, tuple[SpawnProcess, Arm]]()
    failures: list[Failure] = []
    leaving: list[SpawnProcess] = []
    try:
        while waiting or at_work:
            while waiting and len(at_work) < num_workers:
                process, connection = _started(study, shared, results, setup)
                at_work[connection] = process, waiting.popleft()
                _send(connection, at_work[connection][1])
            ready = wait(list(at_work))
            for connection in [connection for connection in at_work if connection in ready]:
                process, arm = at_work[connection]
                try:
                    said = connection.recv()
                except (EOFError, OSError):
                    process.join()
                    del at_work[connection]
                    if not _result_path(results, arm).exists():
                        failures.append(Failure(arm, f"its process ended with exit code {process.exitcode}", ""))
                    continue
                if isinstance(said, tuple):
                    report(arm, *said)
                    continue
                if said is None:
                    report(arm, 1.0, "")
                else:
                    failures.append(said)
                following = waiting.popleft() if waiting else None
                _send(connection, following)
                if following is None:
                    leaving.append(process)
                    del at_work[connection]
                else:
                    at_work[connection] = process, following
    finally:
        for process, _ in at_work.values():
            process.terminate()
            leaving.append(process)
        for process in leaving:
            process.join()
    return failures


def _started(
    study: Study, shared: Path, results: Path, setup: Callable[[], None] | None
) -> tuple[SpawnProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, study, shared, results, setup), daemon=True)
    process.start()
    theirs.close()  # else its death would not end the pipe
    return process, ours


def _send(connection: Connection, arm: Arm | None) -> None:
    with suppress(OSError):  # it has died, as the next receive shows
        connection.send(arm)


def _work(connection: Connection, study: Study, shared: Path, results: Path, setup: Callable[[], None] | None) -> None:
    """Run the arms that come in; send progress as (fraction, note), and a Failure or None at the end of each."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers itself
    torch.set_num_threads(1)
    if setup is not None:
        setup()
    with suppress(EOFError, BrokenPipeError):  # the parent is gone
        while (arm := connection.recv()) is not None:
            connection.send(
                _attempt(study, arm, shared, results, lambda fraction, note: connection.send((fraction, note)))
            )


def _attempt(study: Study, arm: Arm, shared: Path, results: Path, report: Report) -> Failure | None:
    try:
        result = study.run_arm(arm, shared, report)
        write_text(_result_path(results, arm), json.dumps(result, indent=1))
    except Exception as error:  # noqa: BLE001 - whatever it is, the other arms run on, and it is shown at the end
        return Failure(arm, f"{type(error).__name__}: {error}", traceback.format_exc())
    return None


class _Progress:
    """Report how far all arms are together; those with a result at the start count as done from the first report."""

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


def _result_path(results: Path, arm: Arm) -> Path:
    return results / f"{arm.label}.json"


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
