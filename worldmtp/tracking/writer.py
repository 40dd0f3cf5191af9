"""What a writer of metrics does, and several writers as one: by default JSONL and TensorBoard in a run directory.

Every writer checks tags against the table in ``tags.py``, and can be put back to a step before it continues a
killed run.

Left out: hosted trackers. Write a class with the methods of ``MetricWriter`` and pass it among ``writers``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Real, UInt8

from worldmtp.tracking.records import JsonlWriter
from worldmtp.tracking.tags import TAGS, Layout, TagTable
from worldmtp.tracking.tensorboard import TensorBoardWriter


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


class MultiWriter:
    """One writer that is several; by default JSONL and TensorBoard in one run directory."""

    def __init__(self, run_dir: Path, writers: Sequence[MetricWriter] | None = None, tags: TagTable = TAGS) -> None:
        self.run_dir = run_dir
        self._writers: tuple[MetricWriter, ...] = (
            (JsonlWriter(run_dir, tags), TensorBoardWriter(run_dir, tags)) if writers is None else tuple(writers)
        )

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
