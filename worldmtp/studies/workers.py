"""Arms of a study at work: here one after another, or in worker processes, each of which takes one arm after another.

A result is a file from the moment it is there, so that nothing but the arms at work is lost when the run dies. An arm
that raises, or whose process dies, is one failure among the others' results. Workers are started anew, not forked:
threads and devices do not survive a fork. They end with the run: their next word to it finds nobody.
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

from worldmtp.atomic_files import write_text
from worldmtp.studies.protocol import Arm, Report, Study

ArmReport = Callable[[Arm, float, str], None]


@dataclass(frozen=True)
class Failure:
    """An arm without a result: why in a line, and where, as far as that is known."""

    arm: Arm
    reason: str
    traceback: str


def result_path(results: Path, arm: Arm) -> Path:
    """Where an arm's result stands."""
    return results / f"{arm.label}.json"


def run_here(study: Study, arms: Sequence[Arm], shared: Path, results: Path, report: ArmReport) -> list[Failure]:
    """Run the arms in this process; those that failed."""
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
    """Run the arms in ``num_workers`` processes of one thread each, which call ``setup`` first; those that failed."""
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
                    if not result_path(results, arm).exists():
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
    with suppress(OSError):  # it has died; the next receipt says so
        connection.send(arm)


def _work(connection: Connection, study: Study, shared: Path, results: Path, setup: Callable[[], None] | None) -> None:
    """A worker's life: an arm comes in, progress goes out as (fraction, note), and at the end a Failure or None."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run ends its workers itself
    torch.set_num_threads(1)
    if setup is not None:
        setup()
    with suppress(EOFError, BrokenPipeError):  # the run is gone
        while (arm := connection.recv()) is not None:
            connection.send(
                _attempt(study, arm, shared, results, lambda fraction, note: connection.send((fraction, note)))
            )


def _attempt(study: Study, arm: Arm, shared: Path, results: Path, report: Report) -> Failure | None:
    try:
        result = study.run_arm(arm, shared, report)
        write_text(result_path(results, arm), json.dumps(result, indent=1))
    except Exception as error:  # noqa: BLE001 - whatever it is, the other arms are run; it is shown at the end
        return Failure(arm, f"{type(error).__name__}: {error}", traceback.format_exc())
    return None
