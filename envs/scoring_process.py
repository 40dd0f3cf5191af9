"""One process that scores, started when first needed, killed when it does not answer in time."""

import multiprocessing
import traceback
from multiprocessing.connection import Connection
from typing import Any

_STARTUP_SECONDS = 120.0  # a fresh interpreter that imports the task's modules


class ScoringError(RuntimeError):
    """The task raised in the scoring process; the message is its traceback."""


class ScoringProcess:
    """Methods of a task in a spawned process, so the task must pickle and a script that makes one needs a main guard.

    Args:
        target: whose methods are called.
        timeout_seconds: what one call may take, not counting the process's start.
    """

    def __init__(self, target: Any, timeout_seconds: float) -> None:
        self._target = target
        self._timeout_seconds = timeout_seconds
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def call(self, method: str, *arguments: Any, patience: int = 1) -> Any:
        """What the target's method returns; ``patience`` multiplies the limit, for what is the work of so many calls.

        Raises:
            TimeoutError: if it took too long; the process is killed and the next call gets a new one.
            ScoringError: if the target raised, or its process died.
        """
        if self._connection is None:
            self._start()
        failure, result = self._exchange((method, arguments), self._timeout_seconds * patience)
        if failure is not None:
            raise ScoringError(failure)
        return result

    def close(self) -> None:
        """Kill the process; a later call starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._target), daemon=True)
        try:
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._process, self._connection = process, ours
        self._exchange(None, _STARTUP_SECONDS)

    def _exchange(self, message: Any, timeout_seconds: float) -> tuple[str | None, Any]:
        assert self._connection is not None
        try:
            self._connection.send(message)
            if not self._connection.poll(timeout_seconds):
                raise TimeoutError(f"no score after {timeout_seconds} s; the scoring process was killed.")
            failure, result = self._connection.recv()
        except TimeoutError:
            self.close()
            raise
        except (EOFError, OSError) as error:
            self.close()
            raise ScoringError("the scoring process died without an answer.") from error
        except BaseException:
            self.close()  # an interrupt leaves an answer on its way, which the next call would take for its own
            raise
        return failure, result


def _serve(connection: Connection, target: Any) -> None:
    """Answer (failure, result) to every message; the first, None, asks only whether the process is up."""
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        try:
            result = None
            if message is not None:
                method, arguments = message
                result = getattr(target, method)(*arguments)
            connection.send((None, result))
        except Exception:  # noqa: BLE001 - sent to the parent, which counts it; a result that does not pickle, too
            connection.send((traceback.format_exc(), None))
