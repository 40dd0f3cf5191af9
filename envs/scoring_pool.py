"""Several processes that score at once. Results come in the order of the jobs, whoever did them and whoever died."""

import contextlib
import os
import pickle
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import util
from multiprocessing.connection import wait
from typing import Any

from worldmtp.envs.scoring_process import READY, ScoringError, ScoringProcess, ScoringTimeout

_STARTUP_SECONDS = 120.0  # a fresh interpreter that imports the task's modules
_BEFORE_DAEMONS = 10  # multiprocessing's own priority at exit: before it joins the processes that are left


@dataclass(frozen=True)
class Call:
    """A method of the target; ``patience`` multiplies the limit of time, for what is the work of so many calls."""

    method: str
    arguments: tuple[Any, ...]
    patience: int = 1


@dataclass(frozen=True)
class Job:
    """Calls that one process does one after the other; the last one's result counts, and a failure ends them.

    Jobs with the same ``place`` are done by the same process, one at a time, as long as it lives.
    """

    calls: tuple[Call, ...]
    place: int | None = None


@dataclass(frozen=True)
class Outcome:
    """A result, or the error there is instead."""

    result: Any = None
    error: Exception | None = None


@dataclass
class _Slot:
    """A place for one process. Whoever finds a job in it after an interrupt kills the process: its answer may come."""

    process: ScoringProcess | None = None
    is_ready: bool = False
    job: int | None = None
    calls: deque[Call] = field(default_factory=deque)
    deadline: float = 0.0
    limit: float = 0.0
    has_resent: bool = False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
        self.process, self.is_ready, self.job = None, False, None


class ScoringPool:
    """Processes for the methods of a target, each started when first needed.

    They are killed by ``close``, when the pool is collected, and when the interpreter exits.

    Args:
        target: whose methods are called; it must pickle.
        num_processes: how many calls run at once.
        timeout_seconds: what one call may take, not counting the start of a process.
        memory_gib: see ``ScoringProcess``.
    """

    def __init__(self, target: Any, num_processes: int, timeout_seconds: float, memory_gib: float | None) -> None:
        self._target, self._num_processes = target, num_processes
        self._timeout_seconds, self._memory_gib = timeout_seconds, memory_gib
        self._begin()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy has processes of its own."""
        return ScoringPool, (self._target, self._num_processes, self._timeout_seconds, self._memory_gib)

    @property
    def pids(self) -> list[int]:
        """Of the processes that have been started and not killed."""
        return [slot.process.pid for slot in self._slots if slot.process is not None]

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """What came of the jobs, in their order. What a job does to its process cannot harm another's outcome."""
        if os.getpid() != self._owner:  # this is a fork, and the processes answer to its parent
            self._begin()
        outcomes: list[Outcome | None] = [None] * len(jobs)
        anywhere = deque(index for index, job in enumerate(jobs) if job.place is None)
        placed: list[deque[int]] = [deque() for _ in self._slots]
        for index, job in enumerate(jobs):
            if job.place is not None:
                placed[job.place % len(placed)].append(index)
        try:
            while None in outcomes:
                for number in sorted(range(len(placed)), key=lambda number: not self._slots[number].is_ready):
                    slot, queue = self._slots[number], placed[number] or anywhere
                    if slot.job is None and queue:
                        slot.job = queue.popleft()
                        slot.calls, slot.has_resent = deque(jobs[slot.job].calls), False
                        self._go_on(slot, outcomes)
                self._wait(outcomes)
        except BaseException:
            for slot in self._slots:
                if slot.job is not None:
                    slot.kill()
            raise
        return outcomes  # type: ignore[return-value]  # none is None

    def close(self) -> None:
        """Kill the processes; a later call starts others."""
        if os.getpid() == self._owner:
            _kill_all(self._slots)

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._slots = [_Slot() for _ in range(self._num_processes)]
        util.Finalize(self, _kill_all, args=(self._slots,), exitpriority=_BEFORE_DAEMONS)

    def _go_on(self, slot: _Slot, outcomes: list[Outcome | None]) -> None:
        """Start the process, or hand it the next call."""
        if slot.process is None:
            slot.limit = _STARTUP_SECONDS
            try:
                slot.process = ScoringProcess(self._target, self._memory_gib)
            except Exception as error:  # noqa: BLE001 - a target that does not pickle, or no room for a process
                _end(slot, outcomes, Outcome(error=error), is_spent=True)
        elif slot.is_ready:
            call = slot.calls.popleft()
            slot.limit = self._timeout_seconds * call.patience
            try:
                message = pickle.dumps((call.method, call.arguments))
            except Exception as error:  # noqa: BLE001 - arguments that do not pickle
                _end(slot, outcomes, Outcome(error=error), is_spent=False)
                return
            try:
                slot.process.connection.send_bytes(message)
            except OSError as error:
                self._resend(slot, call, outcomes, error)
        slot.deadline = time.monotonic() + slot.limit

    def _resend(self, slot: _Slot, call: Call, outcomes: list[Outcome | None], error: OSError) -> None:
        """Begin the call again: its process had died before it was asked, which is not this call's fault."""
        if slot.has_resent:
            message = "the scoring process dies before it can be asked"
            _end(slot, outcomes, Outcome(error=ScoringError(f"{message}: {error}", "died")), is_spent=True)
            return
        job = slot.job
        slot.kill()
        slot.job, slot.has_resent = job, True
        slot.calls.appendleft(call)
        self._go_on(slot, outcomes)

    def _wait(self, outcomes: list[Outcome | None]) -> None:
        """Until a process answers or the time of one is up."""
        busy = [(slot.process.connection, slot) for slot in self._slots if slot.job is not None and slot.process]
        if not busy:
            return
        patience = min(slot.deadline for _, slot in busy) - time.monotonic()
        answered = wait([connection for connection, _ in busy], max(0.0, patience))
        now = time.monotonic()
        for connection, slot in busy:
            if connection in answered:
                self._take(slot, outcomes)
            elif slot.deadline <= now:
                error = ScoringTimeout(f"no score after {slot.limit:g} s; the scoring process was killed.")
                _end(slot, outcomes, Outcome(error=error), is_spent=True)

    def _take(self, slot: _Slot, outcomes: list[Outcome | None]) -> None:
        assert slot.process is not None
        try:
            kind, content, is_spent = slot.process.receive()
        except ScoringError as error:
            _end(slot, outcomes, Outcome(error=error), is_spent=True)
            return
        if kind == READY or (kind is None and slot.calls):
            slot.is_ready = True
            self._go_on(slot, outcomes)
        elif kind is None:
            _end(slot, outcomes, Outcome(content), is_spent)
        else:
            _end(slot, outcomes, Outcome(error=ScoringError(content, kind)), is_spent or not slot.is_ready)


def _end(slot: _Slot, outcomes: list[Outcome | None], outcome: Outcome, is_spent: bool) -> None:
    """The job of the slot is done; a process that is spent is killed, and the next job starts another."""
    assert slot.job is not None
    job = slot.job
    if is_spent:
        slot.kill()
    outcomes[job], slot.job = outcome, None


def _kill_all(slots: list[_Slot]) -> None:
    with contextlib.ExitStack() as stack:  # all of them, even if one raises
        for slot in slots:
            stack.callback(slot.kill)
