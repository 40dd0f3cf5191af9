"""Scoring that cannot stop a run: failures are counted and shown, a scorer that hangs is killed.

With a time limit, scoring runs in a process of its own, since only a process can be killed whatever it is doing.
"""

import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from worldmtp.envs.scoring_process import ScoringProcess
from worldmtp.envs.task import Example, Progress, Score, Task, TurnTask
from worldmtp.envs.worlds.replay import Reply, WorldReplay

OnError = Literal["zero", "raise"]
Answer = tuple[Example, str, np.ndarray]
"""What is scored: an example, the text, and its tokens as they were generated."""


@runtime_checkable
class BatchScoringTask(Task, Protocol):
    """A task for which many answers at once are cheaper than one at a time, such as a network's."""

    def score_batch(self, answers: Sequence[Answer]) -> list[Score]:
        """Their scores in order, each what ``score`` says of the answer alone."""
        ...


@dataclass
class ScorerCounters:
    """What a scorer has been through. ``scored`` counts calls, failed ones included."""

    scored: int = 0
    errors: int = 0
    timeouts: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Failure:
    """A call that raised, reason "error", or was killed, reason "timeout"; it has been counted."""

    reason: str


class Scorer:
    """Asks a task what texts are worth.

    A ``BatchScoringTask`` is asked about several answers at once. A batch that raises is asked about again one by one,
    so that failures are counted one by one; with a time limit, which is for one answer, everything is.

    Args:
        task: whose methods are called, on stripped text.
        timeout_seconds: limit for one call; None scores in this process, without a limit.
        on_error: "zero" pays 0 with reason "error" or "timeout", counts it and warns once; "raise" raises.

    Raises:
        ValueError: if the limit is not positive or ``on_error`` is unknown.
    """

    def __init__(self, task: Task, timeout_seconds: float | None = None, on_error: str = "zero") -> None:
        if timeout_seconds is not None and timeout_seconds <= 0:
            raise ValueError(f"timeout_seconds={timeout_seconds} must be positive, or None for no limit.")
        if on_error not in ("zero", "raise"):
            raise ValueError(f"on_error={on_error!r} is unknown; expected 'zero' or 'raise'.")
        self.task = task
        self.on_error = on_error
        self.counters = ScorerCounters()
        self._target: Any = WorldReplay(task) if isinstance(task, TurnTask) else task
        self._process = None if timeout_seconds is None else ScoringProcess(self._target, timeout_seconds)
        self._together = task if self._process is None and isinstance(task, BatchScoringTask) else None
        self._warned = False

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """What the text is worth; see the class for what failures do.

        Raises:
            Exception: whatever the task raised, or TimeoutError, with ``on_error="raise"``.
        """
        return self.score_batch([(example, text, ids)])[0]

    def score_batch(self, answers: Sequence[Answer]) -> list[Score]:
        """Scores of (example, text, ids), in order.

        Raises:
            Exception: whatever the task raised, or TimeoutError, with ``on_error="raise"``.
        """
        if self._together is not None and len(answers) > 1:
            return self._score_together(self._together, answers)
        return [self._score_alone(answer) for answer in answers]

    def progress(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Progress | Failure:
        """How far the text has come, of a dense task.

        Raises:
            Exception: whatever the task raised, or TimeoutError, with ``on_error="raise"``.
        """
        result: Progress | Failure = self._ask("progress", (example, text.strip(), ids), Progress, example, text)
        return result

    def turn(self, row: int, example: Example, said: Sequence[str]) -> Reply | Failure:
        """What the world of a row replies to the last text of all that was said to it in this episode.

        Raises:
            Exception: whatever the world raised, or TimeoutError, with ``on_error="raise"``.
        """
        said = tuple(said)
        if self._process is not None:  # a world that was killed is told all again, which takes as many turns' time
            told = self._ask("tell", (row, example, said[:-1]), bool, example, said[-1], patience=len(said))
            if isinstance(told, Failure):
                return told
        result: Reply | Failure = self._ask("turn", (row, example, said), Reply, example, said[-1])
        return result

    def reject(self, error: Exception, example: Example, text: str) -> Failure:
        """Count what was answered as a failure, because it is of no use.

        Raises:
            Exception: the error, with ``on_error="raise"``.
        """
        return self._failure(error, example, text)

    def close(self) -> None:
        """End the scoring process, if there is one."""
        if self._process is not None:
            self._process.close()

    def _ask(
        self, method: str, arguments: tuple[Any, ...], expected: type, example: Example, text: str, patience: int = 1
    ) -> Any:
        start = time.perf_counter()
        self.counters.scored += method != "tell"
        try:
            if self._process is None:
                result = getattr(self._target, method)(*arguments)
            else:
                result = self._process.call(method, *arguments, patience=patience)
            if not isinstance(result, expected):
                raise TypeError(
                    f"task.{method} returned {type(result).__name__}; expected worldmtp.envs.{expected.__name__}."
                )
        except Exception as error:  # noqa: BLE001 - a user's function may raise anything; counted, shown
            return self._failure(error, example, text)
        finally:
            self.counters.seconds += time.perf_counter() - start
        return result

    def _score_alone(self, answer: Answer) -> Score:
        example, text, ids = answer
        score = self._ask("score", (example, text.strip(), ids), Score, example, text)
        return Score(0.0, reason=score.reason) if isinstance(score, Failure) else score

    def _score_together(self, task: BatchScoringTask, answers: Sequence[Answer]) -> list[Score]:
        start = time.perf_counter()
        try:
            scores = task.score_batch([(example, text.strip(), ids) for example, text, ids in answers])
            if len(scores) != len(answers) or not all(isinstance(score, Score) for score in scores):
                raise TypeError(f"task.score_batch must return {len(answers)} worldmtp.envs.Score, got {scores!r}.")
        except Exception as error:  # a user's function may raise anything; the answers that raise alone are counted
            num_errors = self.counters.errors
            scores = [self._score_alone(answer) for answer in answers]
            if self.counters.errors == num_errors:  # no counter would show it
                if self.on_error == "raise":
                    raise
                self._warn(f"scoring {len(answers)} answers together failed, and none of them failed alone", error)
        else:
            self.counters.scored += len(answers)
            self.counters.seconds += time.perf_counter() - start
        return list(scores)

    def _failure(self, error: Exception, example: Example, text: str) -> Failure:
        timed_out = isinstance(error, TimeoutError) and self._process is not None
        if timed_out:
            self.counters.timeouts += 1
        else:
            self.counters.errors += 1
        if self.on_error == "raise":
            raise error
        self._warn(
            f"scoring {text!r} for the prompt {example.prompt!r} failed and pays 0; later failures are counted only "
            "(scorer.counters)",
            error,
        )
        return Failure("timeout" if timed_out else "error")

    def _warn(self, message: str, error: Exception) -> None:
        """Once."""
        if not self._warned:
            self._warned = True
            trace = "".join(traceback.format_exception(error))
            warnings.warn(f"{message}.\n{trace}", RuntimeWarning, stacklevel=2)
