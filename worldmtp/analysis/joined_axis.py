"""One x axis for a warm start and the run after it, whose steps count different things: optimiser steps, tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from worldmtp.analysis.panels import MUTED
from worldmtp.analysis.run_files import RunSteps

WARM_START_SHARE = 0.35
"""Share of the axis that a warm start has, where it was evaluated on the way."""

Steps = Sequence[int | float] | np.ndarray


@dataclass(frozen=True)
class JoinedAxis:
    """Places from 0 to 1 of steps; ``warm_end`` and ``run_end`` are the last ones, and 0 means that there is none."""

    warm_end: float
    run_end: float

    @property
    def border(self) -> float:
        """Return where the run begins; a run without evaluations during its warm start has the whole axis."""
        return WARM_START_SHARE if self.warm_end > 0 else 0.0

    def of_warm_start(self, steps: Steps) -> Float[np.ndarray, " point"]:
        """Return the places of a warm start's steps."""
        return np.asarray(steps, dtype=np.float64) / max(1.0, self.warm_end) * self.border

    def of_run(self, steps: Steps) -> Float[np.ndarray, " point"]:
        """Return the places of the run's own steps."""
        return self.border + np.asarray(steps, dtype=np.float64) / max(1.0, self.run_end) * (1 - self.border)

    def mark(self, ax: Axes, steps: RunSteps | None) -> None:
        """Draw the border between warm start and run, and say what either side is and how many steps it has.

        ``steps`` is None where runs of different units stand on the axis, each from its start to its own end.
        """
        ax.set_xlim(-0.02, 1.02)
        told = "each run to\nits own end" if steps is None else f"{steps.stage}\n{_short(self.run_end)} {steps.unit}"
        ax.set_xticks([(1 + self.border) / 2], [told])
        if self.border:
            ax.axvline(self.border, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
            ax.set_xticks([self.border / 2, (1 + self.border) / 2], [f"SFT\n{_short(self.warm_end)} steps", told])
        ax.tick_params(axis="x", length=0)


def _short(number: float) -> str:
    """Return a count in few characters: 950, 25.6k, 1.23M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"
