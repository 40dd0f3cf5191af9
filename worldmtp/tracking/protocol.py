"""What a writer of metrics answers: eight verbs, the same for every back-end."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Real, UInt8

Layout = Mapping[str, Mapping[str, Sequence[Any]]]
"""TensorBoard's custom scalars: category -> chart -> ["Multiline" or "Margin", [tag patterns]]."""


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
