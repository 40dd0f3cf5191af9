"""The one service that asks a task: for scores, for progress, and for the replies of its worlds.

It cannot stop a run: failures are counted and shown, and with a time limit the task is asked in processes of its own,
where one that hangs is killed.
"""

import math
import os
import re
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from worldmtp.choices import check_choice
from worldmtp.envs.scoring_workers import (
    Call,
    InProcess,
    Job,
    Outcome,
    ProcessPool,
    ScoringError,
    ScoringTimeout,
    error_of,
)
from worldmtp.envs.task import Example, Progress, Reply, Score, Task, TextWorld, TurnTask, WorldOfChance, opening_of

Answer = tuple[Example, str, np.ndarray]
"""What is scored: an example, the text, and its tokens as they were generated."""
Turn = tuple[int, Example, Sequence[str]]
"""What a world is asked: its row, the example, and all texts that were said to it in this episode."""

_MAX_SCORERS = 4  # unless the user asks for more: each process holds a task of its own


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
        on_error: "zero" pays 0 with reason "error" or "timeout", counts it, and warns once for each kind of failure;
            "raise" raises whatever the task raised, or TimeoutError.
        num_scorers: how many processes score at once where there is a limit. None is one for each core and at most 4,
            and a single one for a ``BatchScoringTask``, whose network uses all cores by itself.
        scorer_memory_gib: memory that each of these processes may take beyond its task; None is no limit, which a task
            on a GPU needs.
        paid: whether a score costs money; a task may say so by an attribute ``paid_scorer`` of its own.

    Raises:
        ValueError: if a limit or a number is not positive, ``on_error`` is unknown, or ``num_scorers`` is given without
            a time limit.
    """

    def __init__(
        self,
        task: Task,
        timeout_seconds: float | None = None,
        on_error: str = "zero",
        *,
        num_scorers: int | None = None,
        scorer_memory_gib: float | None = 4.0,
        paid: bool = False,
    ) -> None:
        for name, limit in (("timeout_seconds", timeout_seconds), ("scorer_memory_gib", scorer_memory_gib)):
            if limit is not None and limit <= 0:
                raise ValueError(f"{name}={limit} must be positive, or None for no limit.")
        if num_scorers is not None and num_scorers < 1:
            raise ValueError(f"num_scorers={num_scorers} must be at least 1, or None for one a core and at most 4.")
        if num_scorers is not None and timeout_seconds is None:
            raise ValueError(
                f"num_scorers={num_scorers} needs timeout_seconds: without a limit, scoring stays in this process."
            )
        check_choice("on_error", on_error, ("zero", "raise"))
        self.task = task
        self.on_error = on_error
        self.counters = ScorerCounters()
        self.imagined = ScorerCounters()
        """Of what was asked within ``counting_apart``."""
        self.is_paid = paid or bool(getattr(task, "paid_scorer", False))
        target: Any = WorldReplay(task) if isinstance(task, TurnTask) else task
        self._together = task if timeout_seconds is None and isinstance(task, BatchScoringTask) else None
        self._pool: InProcess | ProcessPool = InProcess(target)
        if timeout_seconds is not None:
            number = num_scorers or (1 if isinstance(task, BatchScoringTask) else min(_MAX_SCORERS, _num_cores()))
            self._pool = ProcessPool(target, number, timeout_seconds, scorer_memory_gib)
        self._warned: set[str] = set()
        self._components: dict[str, tuple[float, int]] = {}  # sum and number
        self._is_ahead = False
        self._ahead: dict[tuple[Any, ...], list[Any]] = {}

    @contextmanager
    def asked_ahead(self, ask: Callable[[], None]) -> Iterator[None]:
        """Answer from memory, within the block, what ``ask`` asked: each of its answers once, not counted again.

        So texts that are played one after the other can be scored together: ``ask`` asks for all of them first. What it
        did not ask is asked when it comes.
        """
        try:
            self._is_ahead = True
            ask()
            self._is_ahead = False
            yield
        finally:
            self._is_ahead, self._ahead = False, {}

    @contextmanager
    def counting_apart(self) -> Iterator[None]:
        """Count what is asked within the block in ``imagined``, and leave it out of the components' means."""
        counted, components = self.counters, self._components
        self.counters, self._components = self.imagined, {}
        try:
            yield
        finally:
            self.counters, self._components = counted, components

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """Return what the text is worth; see the class for what failures do."""
        return self.score_batch([(example, text, ids)])[0]

    def score_batch(self, answers: Sequence[Answer]) -> list[Score]:
        """Return the scores of (example, text, ids), in order."""
        return self._answers("score", answers, self._score_batch)

    def progress_batch(self, answers: Sequence[Answer]) -> list[Progress | Failure]:
        """Return how far each text has come, of a dense task."""
        return self._answers("progress", answers, lambda asked: self._ask(_jobs("progress", asked), Progress, asked))

    def turn_batch(self, turns: Sequence[Turn]) -> list[Reply | Failure]:
        """Return what the world of each row replies to the last text of all that was said to it in this episode."""
        jobs = []
        for row, example, said in turns:  # a world that was killed is told all again, which takes as many turns' time
            tell = Call("tell", (row, example, tuple(said[:-1])), patience=len(said))
            jobs.append(Job((tell, Call("turn", (row, example, tuple(said)))), place=row))
        return self._ask(jobs, Reply, [(example, said[-1], None) for _, example, said in turns])

    def reject(self, error: Exception, example: Example, text: str) -> Failure:
        """Count a failure, show the first of its kind, and return it.

        Raises:
            Exception: the error, with ``on_error="raise"``.
        """
        timed_out = isinstance(error, ScoringTimeout)
        self.counters.timeouts += timed_out
        self.counters.errors += not timed_out
        if self.on_error == "raise":
            raise error
        kind = "timeout" if timed_out else _kind_of(error)
        self._warn(
            kind,
            f"scoring {text!r} for the prompt {example.prompt!r} failed and pays 0; later failures of this kind, "
            f"{kind!r}, are counted only (scorer.counters)",
            error,
        )
        return Failure("timeout" if timed_out else "error")

    def take_components(self) -> dict[str, float]:
        """Return the mean of each component over the answers scored since the last call that have it, and start anew.

        Names are made fit for a metric's tag: every other character than letters, digits, "_", "." and "-" is a "_".
        """
        taken, self._components = self._components, {}
        return {re.sub(r"[^A-Za-z0-9_.-]", "_", name): total / number for name, (total, number) in taken.items()}

    def close(self) -> None:
        """End the scoring processes, if there are any; a later call starts others."""
        self._pool.close()

    def _answers(
        self, method: str, answers: Sequence[Answer], ask: Callable[[Sequence[Answer]], list[Any]]
    ) -> list[Any]:
        """Return what ``ask`` says of the answers, or has said ahead."""
        if not self._is_ahead and not self._ahead:
            return ask(answers)
        keys = [(method, id(example), text, np.asarray(ids).tobytes()) for example, text, ids in answers]
        if self._is_ahead:
            found = ask(answers)
            for key, one in zip(keys, found, strict=True):
                self._ahead.setdefault(key, []).append(one)
            return found
        known = [self._ahead[key].pop(0) if self._ahead.get(key) else None for key in keys]
        new = [answer for answer, one in zip(answers, known, strict=True) if one is None]
        told = iter(ask(new) if new else ())
        return [next(told) if one is None else one for one in known]

    def _ask(self, jobs: Sequence[Job], expected: type, about: Iterable[tuple[Example, str, Any]]) -> list[Any]:
        start = time.perf_counter()
        try:
            return [
                self._settle(outcome, job.calls[-1].method, expected, example, text)
                for outcome, job, (example, text, _) in zip(self._pool.run(jobs), jobs, about, strict=True)
            ]
        finally:
            self.counters.seconds += time.perf_counter() - start

    def _settle(self, outcome: Outcome, method: str, expected: type, example: Example, text: str) -> Any:
        self.counters.scored += 1
        if outcome.error is not None:
            return self.reject(outcome.error, example, text)
        if not isinstance(outcome.result, expected):
            message = f"task.{method} returned {type(outcome.result).__name__}; expected worldmtp.envs."
            return self.reject(TypeError(f"{message}{expected.__name__}."), example, text)
        return outcome.result

    def _score_batch(self, answers: Sequence[Answer]) -> list[Score]:
        together = self._together if len(answers) > 1 else None
        scores = self._score_each(answers) if together is None else self._score_together(together, answers)
        for score in scores:
            for name, value in score.components.items():
                total, number = self._components.get(name, (0.0, 0))
                self._components[name] = (total + float(value), number + 1)
        return scores

    def _score_each(self, answers: Sequence[Answer]) -> list[Score]:
        scores = self._ask(_jobs("score", answers), Score, answers)
        return [Score(0.0, reason=score.reason) if isinstance(score, Failure) else score for score in scores]

    def _score_together(self, task: BatchScoringTask, answers: Sequence[Answer]) -> list[Score]:
        start = time.perf_counter()
        try:
            scores = task.score_batch([(example, text.strip(), ids) for example, text, ids in answers])
            if len(scores) != len(answers) or not all(isinstance(score, Score) for score in scores):
                raise TypeError(f"task.score_batch must return {len(answers)} worldmtp.envs.Score, got {scores!r}.")
        except KeyboardInterrupt:
            raise
        except BaseException as raised:  # noqa: BLE001 - as above; the answers that raise alone are counted
            error, num_errors = error_of(raised), self.counters.errors
            scores = self._score_each(answers)
            if self.counters.errors == num_errors:  # no counter would show it
                if self.on_error == "raise":
                    raise error from raised.__cause__
                shown = f"scoring {len(answers)} answers together failed, and none of them failed alone"
                self._warn("together", shown, error)
        else:
            self.counters.scored += len(answers)
            self.counters.seconds += time.perf_counter() - start
        return list(scores)

    def _warn(self, kind: str, message: str, error: Exception) -> None:
        """Warn once for each kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            trace = "".join(traceback.format_exception(error))
            warnings.warn(f"{message}.\n{trace}", RuntimeWarning, stacklevel=2)


def _jobs(method: str, answers: Sequence[Answer]) -> list[Job]:
    return [Job((Call(method, (example, text.strip(), ids)),)) for example, text, ids in answers]


def _kind_of(error: Exception) -> str:
    if isinstance(error, ScoringError):
        return error.kind
    return "memory" if isinstance(error, MemoryError) else "error"


def _num_cores() -> int:
    """Of this process, which may have been given fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorldReplay:
    """The worlds of all rows of a turn task, which can be lost and found again.

    Since replies are decided by the seed, the dice and the texts, a world is its history. Worlds live where they are
    asked, in this process or in one that may be killed. Who asks says all that was said in the episode; a world that
    has heard all but the last text goes on, any other is reset and told it again.
    """

    def __init__(self, task: TurnTask) -> None:
        self._task = task
        self._worlds: dict[int, TextWorld] = {}
        self._heard: dict[int, tuple[Any, tuple[str, ...]]] = {}

    def score(self, *arguments: Any) -> Score:
        """The task's own."""
        return self._task.score(*arguments)

    def tell(self, row: int, example: Example, said: Sequence[str]) -> bool:
        """Bring the row's world to where all of this has been said; at once if it is there already.

        Raises:
            ValueError: if the world opens otherwise than the example says.
        """
        seed, dice = _fate(example)
        state = (seed, dice), tuple(said)
        if self._heard.get(row) == state:
            return True
        if row not in self._worlds:
            self._worlds[row] = self._task.make_world()
        world = self._worlds[row]
        self._heard.pop(row, None)
        opening, _ = opening_of(world, seed)
        if opening != example.prompt:
            raise ValueError(
                f"{type(world).__name__}.reset({seed}) said {opening!r} and, when the prompt was drawn, "
                f"{example.prompt!r}; a world must be decided by its seed."
            )
        if dice is not None:
            assert isinstance(world, WorldOfChance)  # dice are thrown for those that have them
            world.throw_dice(dice)
        for text in said:
            world.step(text)
        self._heard[row] = state
        return True

    def turn(self, row: int, example: Example, said: Sequence[str]) -> Reply:
        """The reply of the row's world to the last of the texts.

        Raises:
            ValueError: if the world opens otherwise than the example says, or its reply is no reply.
        """
        self.tell(row, example, said[:-1])
        world = self._worlds[row]
        self._heard.pop(row, None)  # what a step that raises leaves behind is not to be gone on with
        reply = checked_reply(world.step(said[-1]), world)
        self._heard[row] = (_fate(example), tuple(said))
        return reply


def _fate(example: Example) -> tuple[Any, Any]:
    """Return the seed of the world, and that of the episode's dice or None where the world's decides them."""
    return example.meta["seed"], example.meta.get("dice")


def checked_reply(returned: Any, world: TextWorld) -> Reply:
    """Return what a world's ``step`` returned as a reply.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(returned, tuple) or len(returned) != 5:
        raise ValueError(
            f"{type(world).__name__}.step returned {returned!r}; expected (text, reward, terminated, truncated, info)."
        )
    text, reward, terminated, truncated, info = returned
    try:
        paid = math.nan if isinstance(reward, str) else float(reward)
    except (TypeError, ValueError):
        paid = math.nan
    if not isinstance(text, str) or not math.isfinite(paid):
        raise ValueError(
            f"{type(world).__name__}.step said {text!r} and paid {reward!r}; expected a str and a finite number."
        )
    return Reply(text, paid, bool(terminated), bool(truncated) and not terminated, dict(info or {}))
