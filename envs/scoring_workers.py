"""Who calls a task: this process, or several that may be killed. Both take jobs and give their outcomes, in order.

A scoring process leads a session of its own: an interrupt of the terminal does not reach it, killing its group reaches
its children, but one with its own session. On Linux the kernel kills the group when its client is gone, come what may.
"""

import contextlib
import fcntl
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

_READY = "ready"  # the kind of the first message of a process: its target is loaded
_GUARD = 'put what the script does under if __name__ == "__main__":, or score without timeout_seconds.'
_STARTUP_SECONDS = 120.0  # a fresh interpreter that imports the task's modules
_EXIT_CODE_SECONDS = 0.5  # a process that has closed its pipe is about to exit; a longer wait would be the scorer's
_BEFORE_DAEMONS = 10  # multiprocessing's own priority at exit: before it joins the processes that are left


class ScoringError(RuntimeError):
    """The task failed; ``kind`` says how.

    "error": it raised, and the message is the traceback. "exit": it raised SystemExit or the like. "memory": it ran out
    of memory. "died": its process ended without an answer.
    """

    def __init__(self, message: str, kind: str = "error") -> None:
        super().__init__(message)
        self.kind = kind


class ScoringTimeout(TimeoutError):
    """The task took longer than its limit, and its process was killed."""


def error_of(raised: BaseException) -> Exception:
    """Return an error that can be raised: SystemExit would end the training as if all were well."""
    if isinstance(raised, Exception):
        return raised
    error = ScoringError(f"the scorer raised {raised!r}, which would end the program.", "exit")
    error.__cause__ = raised
    return error


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


class InProcess:
    """This process does the jobs, one by one as their outcomes are asked for, and without a limit."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Do a job when its outcome is asked for."""
        for job in jobs:
            try:
                result = [getattr(self._target, call.method)(*call.arguments) for call in job.calls][-1]
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - a user's function may raise anything; counted, shown
                yield Outcome(error=error_of(error))
            else:
                yield Outcome(result)

    def close(self) -> None:
        """Do nothing: nothing has been started."""


@dataclass
class _Slot:
    """A place for one process. Whoever finds a job in it after an interrupt kills the process: its answer may come."""

    process: "_Process | None" = None
    is_ready: bool = False
    job: int | None = None
    outcomes: list[Outcome | None] = field(default_factory=list)
    calls: deque[Call] = field(default_factory=deque)
    deadline: float = 0.0
    limit: float = 0.0
    has_resent: bool = False

    def begin(self, number: int, job: Job, outcomes: list[Outcome | None]) -> None:
        self.job, self.calls, self.outcomes, self.has_resent = number, deque(job.calls), outcomes, False

    def end(self, outcome: Outcome, is_spent: bool) -> None:
        """Give the job's outcome; a process that is spent is killed, and the next job starts another."""
        assert self.job is not None
        self.outcomes[self.job] = outcome
        if is_spent:
            self.kill()
        self.job = None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
        self.process, self.is_ready, self.job = None, False, None


class ProcessPool:
    """Processes of their own do the jobs, each started when it is first needed.

    They are killed by ``close``, when the pool is collected, and when the interpreter exits.

    Args:
        target: whose methods are called; it must pickle.
        num_processes: how many calls run at once.
        timeout_seconds: what one call may take, not counting the start of a process.
        memory_gib: what the calls of one process may take of memory, as ``_Process`` says.

    Raises:
        RuntimeError: such a process imports the script that started it, which would run all over again in each.
    """

    def __init__(self, target: Any, num_processes: int, timeout_seconds: float, memory_gib: float | None) -> None:
        if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself asks
            raise RuntimeError("a scoring process imports the script that started it; " + _GUARD)
        self._arguments = target, num_processes, timeout_seconds, memory_gib
        self._open()

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what a copy is made of; it has processes of its own."""
        return ProcessPool, self._arguments

    @property
    def pids(self) -> list[int]:
        """Of the processes that have been started and not killed."""
        return [slot.process.pid for slot in self._slots if slot.process is not None]

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Do the jobs. What a job does to its process cannot harm another's outcome."""
        if os.getpid() != self._owner:  # this is a fork, and the processes answer to its parent
            self._open()
        outcomes: list[Outcome | None] = [None] * len(jobs)
        anywhere = deque(number for number, job in enumerate(jobs) if job.place is None)
        places = [None if job.place is None else job.place % len(self._slots) for job in jobs]
        placed = [deque(n for n, place in enumerate(places) if place == index) for index in range(len(self._slots))]
        try:
            while None in outcomes:
                for index in sorted(range(len(placed)), key=lambda index: not self._slots[index].is_ready):
                    slot, queue = self._slots[index], placed[index] or anywhere
                    if slot.job is None and queue:
                        number = queue.popleft()
                        slot.begin(number, jobs[number], outcomes)
                        self._go_on(slot)
                self._wait()
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

    def _open(self) -> None:
        self._owner = os.getpid()
        self._target, num_processes, self._timeout_seconds, self._memory_gib = self._arguments
        self._slots = [_Slot() for _ in range(num_processes)]
        util.Finalize(self, _kill_all, args=(self._slots,), exitpriority=_BEFORE_DAEMONS)

    def _go_on(self, slot: _Slot) -> None:
        """Start the process, or hand it the next call."""
        if slot.process is None:
            slot.limit = _STARTUP_SECONDS
            try:
                slot.process = _Process(self._target, self._memory_gib)
            except Exception as error:  # noqa: BLE001 - a target that does not pickle, or no room for a process
                slot.end(Outcome(error=error), is_spent=True)
        elif slot.is_ready:
            call = slot.calls.popleft()
            slot.limit = self._timeout_seconds * call.patience
            try:
                message = pickle.dumps((call.method, call.arguments))
            except Exception as error:  # noqa: BLE001 - arguments that do not pickle
                slot.end(Outcome(error=error), is_spent=False)
                return
            try:
                slot.process.connection.send_bytes(message)
            except OSError as error:
                self._resend(slot, call, error)
        slot.deadline = time.monotonic() + slot.limit

    def _resend(self, slot: _Slot, call: Call, error: OSError) -> None:
        """Begin the call again: its process had died before it was asked, which is not this call's fault."""
        if slot.has_resent:
            failure = ScoringError(f"the scoring process dies before it can be asked: {error}", "died")
            slot.end(Outcome(error=failure), is_spent=True)
            return
        job = slot.job
        slot.kill()
        slot.job, slot.has_resent = job, True
        slot.calls.appendleft(call)
        self._go_on(slot)

    def _wait(self) -> None:
        """Wait until a process answers or the time of one is up."""
        busy = [(slot.process.connection, slot) for slot in self._slots if slot.job is not None and slot.process]
        patience = min((slot.deadline for _, slot in busy), default=0.0) - time.monotonic()
        answered = wait([connection for connection, _ in busy], max(0.0, patience))
        now = time.monotonic()
        for connection, slot in busy:
            if connection in answered:
                self._take(slot)
            elif slot.deadline <= now:
                error = ScoringTimeout(f"no score after {slot.limit:g} s; the scoring process was killed.")
                slot.end(Outcome(error=error), is_spent=True)

    def _take(self, slot: _Slot) -> None:
        assert slot.process is not None
        try:
            kind, content, is_spent = slot.process.receive()
        except ScoringError as error:
            slot.end(Outcome(error=error), is_spent=True)
            return
        if kind == _READY or (kind is None and slot.calls):
            slot.is_ready = True
            self._go_on(slot)
        elif kind is None:
            slot.end(Outcome(content), is_spent)
        else:
            slot.end(Outcome(error=ScoringError(content, kind)), is_spent or not slot.is_ready)


def _kill_all(slots: list[_Slot]) -> None:
    with contextlib.ExitStack() as stack:  # all of them, even if one raises
        for slot in slots:
            stack.callback(slot.kill)


class _Process:
    """Methods of a target in a spawned process: the target must pickle, and a script that makes one needs a main guard.

    Its first message is of kind ``_READY``, or of the failure to load the target. Its calls may take ``memory_gib`` of
    address space in all, beyond what the process has when the target is loaded, and so may each child of it; None is no
    limit, and so is a system other than Linux.
    """

    def __init__(self, target: Any, memory_gib: float | None) -> None:
        pickled = pickle.dumps(target)
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, pickled, memory_gib))
        try:
            self._process.start()
            assert self._process.pid is not None
            self.pid = self._process.pid
        except BaseException:
            self.connection.close()
            raise
        finally:
            theirs.close()

    def receive(self) -> tuple[str | None, Any, bool]:
        """Return (None, result, whether it is spent), or with the kind of a failure and its traceback.

        A process that is spent has lost its memory or left children behind, and is to be killed.

        Raises:
            ScoringError: if the process died, or its result does not unpickle.
        """
        try:
            message = self.connection.recv_bytes()
        except (EOFError, OSError) as error:
            self._process.join(_EXIT_CODE_SECONDS)
            code = self._process.exitcode
            cure = f" If a script has started it: {_GUARD}" if code == 1 else ""  # of an import that fails
            raise ScoringError(
                f"the scoring process died without an answer, exit code {code}.{cure}", "died"
            ) from error
        try:
            kind, content, is_spent = pickle.loads(message)
            return kind, pickle.loads(content), is_spent
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # what the scorer's classes do when they are made anew
            raise ScoringError(f"the scorer's result does not unpickle: {traceback.format_exc()}") from error

    def kill(self) -> None:
        """Kill the process and its group, and wait for its end."""
        if self.connection.closed:  # last of all, so that a kill that was interrupted can be done again
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):  # there is no group before the session's start
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ValueError):  # closed already
            self._process.kill()
            self._process.join()
            self._process.close()
        self.connection.close()


def _serve(connection: Connection, pickled: bytes, memory_gib: float | None) -> None:
    """Answer every message, (method, arguments), with (kind of failure or None, pickled content, whether spent)."""
    os.setsid()
    _die_with_parent()
    os.set_inheritable(connection.fileno(), False)  # else a command that the scorer leaves behind holds the pipe
    os.register_at_fork(after_in_child=connection.close)
    own_pid = os.getpid()
    loaded: list[Any] = []

    def ask(method: str, arguments: tuple[Any, ...]) -> Any:
        return getattr(loaded[0], method)(*arguments)

    connection.send_bytes(pickle.dumps(_attempt(lambda: loaded.append(pickle.loads(pickled)), (), _READY, own_pid)))
    if memory_gib is not None:
        _limit_memory(memory_gib)
    while True:
        try:
            question = pickle.loads(connection.recv_bytes())
        except EOFError:
            os.killpg(0, signal.SIGKILL)
            raise  # not reached: this process is of the group
        connection.send_bytes(pickle.dumps(_attempt(ask, question, None, own_pid)))


def _attempt(
    work: Callable[..., Any], arguments: tuple[Any, ...], kind: str | None, own_pid: int
) -> tuple[str | None, bytes, bool]:
    try:
        result = work(*arguments)
        if os.getpid() != own_pid:
            os._exit(0)  # the scorer forked, and this is the child: the answer is its parent's to give
        return kind, pickle.dumps(result), False
    except BaseException as error:  # noqa: BLE001 - sent to the other side, which counts it; no pickle, no result
        if os.getpid() != own_pid:
            os._exit(1)
        if isinstance(error, MemoryError):
            traceback.clear_frames(error.__traceback__)  # they hold what filled the memory
            return "memory", pickle.dumps(traceback.format_exc()), True
        is_exit = not isinstance(error, Exception)
        return "exit" if is_exit else "error", pickle.dumps(traceback.format_exc()), is_exit or _has_children()


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _die_with_parent() -> None:
    """Let the kernel kill the group when the pipe that the parent holds is closed; a thread could be kept waiting."""
    parent = multiprocessing.parent_process()
    if sys.platform == "linux" and parent is not None:
        sentinel = parent.sentinel
        fcntl.fcntl(sentinel, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(sentinel, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)


def _limit_memory(memory_gib: float) -> None:
    if sys.platform == "linux":
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = taken + int(memory_gib * 2**30)
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
