"""Writers of metrics: ``metrics.jsonl``, and several writers as one, by default it and TensorBoard in a run directory.

``metrics.jsonl`` is the run's own record, and what the analysis reads. Every writer checks tags against the table in
``tags.py``, and can be put back to a step before it continues a killed run.

Left out: hosted trackers. Write a class with the methods of ``MetricWriter`` and pass it among ``writers``.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Real, UInt8

from worldmtp.atomic_files import write_text
from worldmtp.tracking.tag_table import TagTable
from worldmtp.tracking.tags import TAGS, Layout
from worldmtp.tracking.tensorboard_writer import TensorBoardWriter

METRICS_FILE = "metrics.jsonl"
_QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)


@runtime_checkable
class MetricWriter(Protocol):
    """Where a run's numbers, texts and pictures go; steps are environment tokens."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers by tag."""
        ...

    def text(self, tag: str, text: str, step: int) -> None:
        """Record markdown."""
        ...

    def image(self, tag: str, image: UInt8[np.ndarray, "height width 3"], step: int) -> None:
        """Record an RGB picture."""
        ...

    def histogram(self, tag: str, values: Real[np.ndarray, " n"], step: int) -> None:
        """Record a distribution."""
        ...

    def custom_layout(self, layout: Layout) -> None:
        """Group charts, where the back-end can; a second call replaces the first."""
        ...

    def resume_at(self, step: int) -> None:
        """Forget what was recorded after ``step``, by this process or an earlier one; -1 forgets everything."""
        ...

    def flush(self) -> None:
        """Put what was recorded on disk."""
        ...

    def close(self) -> None:
        """Flush and release; the last call."""
        ...


class JsonlWriter:
    """``metrics.jsonl``: one object per call; pictures become PNG files that the line names.

    A number that is not finite is written as null and its tag listed under ``nonfinite``: the line stays standard JSON
    and the event stays visible. A histogram is written as its count and its quantiles.
    """

    def __init__(self, run_dir: Path, tags: TagTable = TAGS, clock: Callable[[], float] = time.monotonic) -> None:
        self._run_dir = run_dir
        self._path = run_dir / METRICS_FILE
        self._tags = tags
        self._clock = clock
        self._start = clock()
        self._has_resumed = False
        self._last_step: int | None = None
        run_dir.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] | None = None

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write one line with all the values."""
        for tag in values:
            self._tags.check(tag, "scalar")
        numbers = {tag: float(value) for tag, value in values.items()}
        nonfinite = [tag for tag, value in numbers.items() if not math.isfinite(value)]
        record: dict[str, Any] = {tag: value if math.isfinite(value) else None for tag, value in numbers.items()}
        if nonfinite:
            record["nonfinite"] = nonfinite
        self._append(step, record)

    def text(self, tag: str, text: str, step: int) -> None:
        """Write one line, under the key ``text``."""
        self._tags.check(tag, "text")
        self._append(step, {"text": {tag: text}})

    def image(self, tag: str, image: UInt8[np.ndarray, "height width 3"], step: int) -> None:
        """Write ``images/<tag>/<step>.png`` and a line with its path, under the key ``image``."""
        from PIL import Image

        self._tags.check(tag, "image")
        relative = Path("images") / tag / f"{step:012d}.png"
        target = self._run_dir / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(target, format="PNG")
        self._append(step, {"image": {tag: relative.as_posix()}})

    def histogram(self, tag: str, values: Real[np.ndarray, " n"], step: int) -> None:
        """Write one line with the quantiles 0, .1, .5, .9, 1 of the finite values, under the key ``histogram``."""
        self._tags.check(tag, "histogram")
        finite = values[np.isfinite(values)]
        quantiles = np.quantile(finite, _QUANTILES).tolist() if len(finite) > 0 else []
        self._append(step, {"histogram": {tag: {"count": len(values), "finite": len(finite), "quantiles": quantiles}}})

    def custom_layout(self, layout: Layout) -> None:
        """Do nothing: a layout is how TensorBoard shows the numbers, not a number."""

    def resume_at(self, step: int) -> None:
        """Keep the lines with a step up to ``step``, atomically; their clock goes on where the last one stopped.

        A last line that was cut by a kill is dropped.

        Raises:
            ValueError: a line before the last is not JSON.
        """
        self.close()
        self._has_resumed = True
        self._last_step = None
        if not self._path.exists():
            return
        kept = [record for record in read_records(self._path) if record["step"] <= step]
        write_text(self._path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in kept))
        if kept:
            self._start = self._clock() - float(kept[-1]["time_seconds"])
            self._last_step = int(kept[-1]["step"])

    def flush(self) -> None:
        """Flush to disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close."""
        if self._file is not None:
            self.flush()
            self._file.close()
            self._file = None

    def _append(self, step: int, record: Mapping[str, Any]) -> None:
        if self._last_step is not None and step < self._last_step:
            raise ValueError(
                f"step={step} after step={self._last_step}; the steps of one writer never go back, or resuming would "
                "cut the wrong lines. Give what counts other steps, such as a warm start, a writer of its own."
            )
        if self._file is None:
            self._file = self._open()
        self._last_step = step
        line = {"step": step, "time_seconds": round(self._clock() - self._start, 3), **record}
        # Flushed per line, so that a killed process loses none that was written.
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def _open(self) -> IO[str]:
        if not self._has_resumed and self._path.exists() and self._path.stat().st_size > 0:
            raise FileExistsError(
                f"{self._path} already holds the metrics of a run. Call resume_at(step) to continue it, or use "
                "another run directory."
            )
        self._has_resumed = True
        return self._path.open("a", encoding="utf-8")


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file; a last one without its newline was cut by a kill and is left out.

    Raises:
        ValueError: another line is not a JSON object with a step.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}); the file was damaged or edited.") from error
        if not isinstance(record, dict) or "step" not in record:
            raise ValueError(f"{path}, line {number} is not an object with a step; the file was damaged or edited.")
        records.append(record)
    return records


class MultiWriter:
    """One writer that is several; by default JSONL and TensorBoard in one run directory."""

    def __init__(self, run_dir: Path, writers: Sequence[MetricWriter] | None = None, tags: TagTable = TAGS) -> None:
        self.run_dir = run_dir
        self._writers: tuple[MetricWriter, ...] = (
            (JsonlWriter(run_dir, tags), TensorBoardWriter(run_dir, tags)) if writers is None else tuple(writers)
        )

    @classmethod
    def of_run(cls, run_dir: Path, tensorboard: bool, hparams: Mapping[str, int | float | str]) -> "MultiWriter":
        """Return the writers of a run, TensorBoard's among them if it is wanted; the directory is made."""
        run_dir.mkdir(parents=True, exist_ok=True)
        boards = [TensorBoardWriter(run_dir, hparams=hparams)] if tensorboard else []
        return cls(run_dir, [JsonlWriter(run_dir), *boards])

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Forward to each writer."""
        for writer in self._writers:
            writer.scalars(values, step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Forward to each writer."""
        for writer in self._writers:
            writer.text(tag, text, step)

    def image(self, tag: str, image: UInt8[np.ndarray, "height width 3"], step: int) -> None:
        """Forward to each writer."""
        for writer in self._writers:
            writer.image(tag, image, step)

    def histogram(self, tag: str, values: Real[np.ndarray, " n"], step: int) -> None:
        """Forward to each writer."""
        for writer in self._writers:
            writer.histogram(tag, values, step)

    def custom_layout(self, layout: Layout) -> None:
        """Forward to each writer."""
        for writer in self._writers:
            writer.custom_layout(layout)

    def resume_at(self, step: int) -> None:
        """Forward to each writer."""
        for writer in self._writers:
            writer.resume_at(step)

    def flush(self) -> None:
        """Forward to each writer."""
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Forward to each writer."""
        for writer in self._writers:
            writer.close()

    def __enter__(self) -> "MultiWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
