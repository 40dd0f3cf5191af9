"""How the report's figures are drawn: colours, axes and the two kinds of panel that several of them have.

One colour per arm everywhere; depths run from dark to light of one hue; orange is the ideal or the floor that a curve
is read against. Axes carry their unit. Bars are 90 % intervals over sequences.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worldmtp.analysis.metrics import Reliability, SequenceSums
from worldmtp.statistics import Interval

ARM_COLOURS = ("#35618e", "#3f8f6b", "#8a5a9e", "#a8553f", "#5d6b7a", "#b08a2e")
REFERENCE = "#d98032"
INK = "#2b2f36"
MUTED = "#79808c"
GRID = "#e6e8ec"
_DEPTH_COLOURS = ("#1d3f63", "#35618e", "#5b8bbd", "#8db3d9", "#b9d2e8", "#d5e3f0")


def make_panels(num_panels: int, height: float, width: float = 9.2) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure with panels side by side; sizes are in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, num_panels, squeeze=False)[0]
    for ax in axes:
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            ax.spines[side].set_color("#b8bdc6")
        ax.grid(axis="y", color=GRID, linewidth=0.8)
        ax.set_axisbelow(True)
        ax.tick_params(colors=MUTED, labelsize=8.5, length=3)
    return figure, list(axes)


def panel_grid(number: int, columns: int, cell: tuple[float, float]) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure with panels in rows of at most ``columns``, each of ``cell`` inches."""
    columns = min(columns, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(cell[0] * max(columns, 3), cell[1] * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[number:]:
        ax.remove()
    for ax in axes[:number]:
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
        ax.grid(axis="y", color=GRID, linewidth=0.8)
        ax.set_axisbelow(True)
        ax.tick_params(colors=MUTED, labelsize=8, length=2)
    return figure, list(axes[:number])


def name_axes(ax: Axes, title: str, x: str, y: str) -> None:
    """Write a panel's title, if it has one, and the names of its axes."""
    if title:
        ax.set_title(title, fontsize=10, color=INK, loc="left", fontweight="bold", pad=8)
    ax.set_xlabel(x, fontsize=9, color=INK)
    ax.set_ylabel(y, fontsize=9, color=INK)


def add_legend(ax: Axes, place: Literal["best", "upper left"] = "best") -> None:
    """Add a legend of what has a label, if anything has."""
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize=8, frameon=False, labelcolor=INK, handlelength=1.6, loc=place)


def depth_line(ax: Axes, sums: SequenceSums, colour: str, offset: float, name: str) -> None:
    """Plot the means by depth with their intervals."""
    means = sums.mean()
    depths = np.arange(1, len(means) + 1)
    intervals = [sums.interval(int(k), generator=0) for k in depths]
    _with_bars(ax, depths + offset, means, intervals, colour, name)


def interval_line(ax: Axes, intervals: Sequence[Interval | None], colour: str, name: str | None = None) -> None:
    """Plot estimates at 1, 2, ... with their intervals; where there is none, the line has a gap."""
    means = np.array([np.nan if found is None else found.estimate for found in intervals])
    _with_bars(ax, np.arange(1, len(intervals) + 1), means, intervals, colour, name)


def _with_bars(
    ax: Axes,
    places: np.ndarray,
    means: np.ndarray,
    intervals: Sequence[Interval | None],
    colour: str,
    name: str | None,
) -> None:
    ends = np.array(
        [
            (0.0, 0.0) if found is None else (max(0.0, mean - found.low), max(0.0, found.high - mean))
            for found, mean in zip(intervals, means, strict=True)
        ]
    )
    ax.errorbar(
        places, means, yerr=ends.T, color=colour, marker="o", ms=4, linewidth=1.6, capsize=2.5, elinewidth=1.1,
        label=name,
    )  # fmt: skip


def reliability_line(ax: Axes, table: Reliability) -> None:
    """Plot accuracy against confidence, over grey bars of how much stands behind each bin."""
    width = table.edges[1] - table.edges[0]
    share = table.count / max(1, table.count.sum())
    ax.bar(table.edges[:-1], share, width=width, align="edge", color=GRID, edgecolor="white", linewidth=0.8)
    ax.plot([0, 1], [0, 1], color=REFERENCE, linewidth=1.1, linestyle=(0, (4, 2)))
    filled = table.count > 0
    ax.plot(table.confidence[filled], table.accuracy[filled], color=depth_colour(2), marker="o", ms=4, linewidth=1.4)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.02)


def depth_colour(depth: int) -> str:
    """Return the colour of a depth."""
    return _DEPTH_COLOURS[min(depth, len(_DEPTH_COLOURS)) - 1]
