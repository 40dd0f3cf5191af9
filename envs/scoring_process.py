"""One process that scores. It has limits of its own, and it is killed together with everything it has started.

The process leads a session of its own. An interrupt from the terminal does not reach it, and killing its process group
reaches its children, too; only a child that starts a session of its own escapes. On Linux the kernel kills the whole
group when the process that scores for is gone, whatever the scorer is doing at that moment.
"""

import contextlib
import fcntl
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

READY = "ready"
"""The kind of the first message of a process: its target is loaded."""

_GIB = 2**30
_EXIT_CODE_SECONDS = 0.5  # a process that has closed its pipe is about to exit; a longer wait would be the scorer's


class ScoringError(RuntimeError):
    """The task failed; ``kind`` says how.

    "error": it raised, and the message is the traceback. "exit": it raised SystemExit or the like. "memory": it ran
    out of memory. "died": its process ended without an answer.
    """

    def __init__(self, message: str, kind: str = "error") -> None:
        super().__init__(message)
        self.kind = kind


class ScoringTimeout(TimeoutError):
    """The task took longer than its limit, and its process was killed."""


class ScoringProcess:
    """Methods of a target in a spawned process: the target must pickle, and a script that makes one needs a main guard.

    The first message that comes from it is of kind ``READY``, or of the failure to load the target.

    Args:
        target: whose methods are called.
        memory_gib: address space that calls may take in all, beyond what the process has when the target is loaded.
            Each child of the process has as much. None is no limit, and so is a system other than Linux.
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
            raise ScoringError(f"the scoring process died without an answer, exit code {code}.", "died") from error
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

    def load() -> None:
        loaded.append(pickle.loads(pickled))

    def ask(method: str, arguments: tuple[Any, ...]) -> Any:
        return getattr(loaded[0], method)(*arguments)

    connection.send_bytes(pickle.dumps(_attempt(load, (), READY, own_pid)))
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
        limit = taken + int(memory_gib * _GIB)
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
