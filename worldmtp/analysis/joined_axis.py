"""One x axis for a warm start and the run after it, whose steps count different things: optimiser steps, tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from worldmtp.analysis.panels import MUTED

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

    def mark(self, ax: Axes) -> None:
        """Draw the border between warm start and run, and name both sides."""
        ax.set_xlim(-0.02, 1.02)
        if not self.border:
            ax.set_xticks([0, 1], ["start", "end"])
            return
        ax.axvline(self.border, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
        ax.set_xticks([self.border / 2, (1 + self.border) / 2], ["SFT", "RL"])
        ax.tick_params(axis="x", length=0)
