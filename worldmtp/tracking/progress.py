"""Progress with an estimate of the time left: a bar on a terminal, a plain line every few seconds elsewhere.

A run is a list of stages with weights, their expected shares of its time; progress is the weight of what is done. The
time left assumes that the rest goes as fast as what was done since the reporter started, so a resumed run says where
it starts and takes no credit for what an earlier process did.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import TextIOBase
from typing import TYPE_CHECKING, TextIO, cast

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass(frozen=True)
class Stage:
    """A stage of a run and its expected share of the time, relative to the others."""

    name: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"Stage {self.name!r} has weight={self.weight}; a weight is positive.")


class ProgressReporter:
    """Show how far a run is; use it as a context."""

    def __init__(
        self,
        stages: Sequence[Stage],
        stream: TextIO | TextIOBase,
        *,
        interval_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write nothing before the first ``update``.

        Raises:
            ValueError: no stage, or two of one name.
        """
        names = [stage.name for stage in stages]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"Got the stages {names}; need at least one, each name once.")
        total = sum(stage.weight for stage in stages)
        self._names = names
        self._shares = {stage.name: stage.weight / total for stage in stages}
        self._stream = stream
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._start = clock()
        self._first_fraction: float | None = None
        self._last_line_at: float | None = None
        self._last_stage: str | None = None
        self._bar: Progress | None = None

    def update(self, stage: str, fraction: float, note: str = "") -> None:
        """Show that ``stage`` is done to ``fraction``, and those before it wholly; ``note`` is shown behind.

        Raises:
            ValueError: an unknown stage, or a fraction outside [0, 1].
        """
        if stage not in self._shares:
            raise ValueError(f"Unknown stage {stage!r}; this run's stages are {self._names}.")
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction={fraction} of stage {stage!r}; a fraction lies in [0, 1].")
        before = sum(self._shares[name] for name in self._names[: self._names.index(stage)])
        overall = min(1.0, before + self._shares[stage] * fraction)
        if self._first_fraction is None:
            self._first_fraction = overall
        line = f"[{overall:4.0%}] {stage}  {self._times(overall)}" + (f"  {note}" if note else "")
        if self._stream.isatty():
            self._draw(line, overall)
        elif self._is_due(stage, fraction):
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def close(self) -> None:
        """Leave the terminal as it was found."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> "ProgressReporter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def remaining_seconds(self, overall: float) -> float | None:
        """Return the seconds left at an overall fraction, or None while nothing was done yet."""
        done = overall - (self._first_fraction or 0.0)
        if done <= 0:
            return None
        return (self._clock() - self._start) * (1 - overall) / done

    def _is_due(self, stage: str, fraction: float) -> bool:
        """Return whether it is time for a line: a stage begins or ends, or the last line is old."""
        now = self._clock()
        is_recent = self._last_line_at is not None and now - self._last_line_at < self._interval_seconds
        if is_recent and stage == self._last_stage and fraction < 1:
            return False
        self._last_line_at, self._last_stage = now, stage
        return True

    def _draw(self, line: str, overall: float) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            # The line is text and not markup: a note may hold brackets.
            columns = BarColumn(), TextColumn("{task.description}", markup=False)
            console = Console(file=cast(TextIO, self._stream))
            self._bar = Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False)
            self._bar.add_task(line, total=1.0)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=overall, description=line, refresh=True)

    def _times(self, overall: float) -> str:
        remaining = self.remaining_seconds(overall)
        eta = "unknown" if remaining is None else format_seconds(remaining)
        return f"{format_seconds(self._clock() - self._start)} elapsed, {eta} left"


def format_seconds(seconds: float) -> str:
    """Return ``42s``, ``3m05s`` or ``2h07m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
