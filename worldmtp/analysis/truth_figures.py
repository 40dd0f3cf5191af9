"""Figures of what heads say beside what is true, in worlds whose law is known."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worldmtp.analysis.panels import ARM_COLOURS, REFERENCE, add_legend, make_panels, name_axes
from worldmtp.analysis.truth import Truth

_NOISE = "#d3d8df"
_STRUCTURE = "#f0c9a4"


def truth_figure(truths: Mapping[str, Truth]) -> Figure:
    """Plot loss over what is true, error, and acceptance with the perfect head's, by depth; a line an evaluation."""
    figure, axes = make_panels(3, height=3.2)
    truth = next(iter(truths.values()))  # the texts are the same at each evaluation, so the law is
    depths = np.arange(1, truth.num_depths + 1)
    noise, structural = (_means(truth, name) for name in ("noise", "structural"))
    axes[0].fill_between(depths, 0, noise, color=_NOISE, linewidth=0, label="noise, exact")
    axes[0].fill_between(
        depths, noise, noise + structural, color=_STRUCTURE, linewidth=0, label="structural gap, exact"
    )
    _reference(axes[0], depths, _means(truth, "floor"), "least possible")
    _reference(axes[1], depths, np.zeros(len(depths)), "perfect head")
    _reference(axes[2], depths, _means(truth, "accept_exact"), "perfect head")
    for place, (name, found) in enumerate(truths.items()):
        for ax, what in zip(axes, ("loss", "error", "accept"), strict=True):
            _line(ax, found, what, ARM_COLOURS[place % len(ARM_COLOURS)], name)
    titles = ("Loss of depth k, over the truth", "Error of depth k", "Drafts the law would keep")
    for ax, title, unit in zip(axes, titles, ("nats per token", "nats per token", "probability"), strict=True):
        name_axes(ax, title, "depth k (tokens ahead)", unit)
        ax.set_xticks(depths)
    axes[0].set_ylim(0, 1.5 * axes[0].get_ylim()[1])  # room for the legend
    low, high = axes[1].get_ylim()
    axes[1].set_ylim(min(0.0, low), high + 0.5 * (high - low))
    axes[2].set_ylim(0, 1.04)
    add_legend(axes[0], "upper left")
    add_legend(axes[1], "upper left")
    return figure


def _reference(ax: Axes, depths: np.ndarray, values: np.ndarray, label: str) -> None:
    ax.plot(depths, values, color=REFERENCE, linewidth=1.4, linestyle=(0, (4, 2)), label=label)


def _line(ax: Axes, truth: Truth, what: str, colour: str, name: str) -> None:
    found = [truth.interval(what, depth) for depth in range(1, truth.num_depths + 1)]
    middle = np.array([one.estimate for one in found])
    ends = np.array([[max(0.0, one.estimate - one.low), max(0.0, one.high - one.estimate)] for one in found])
    ax.errorbar(
        np.arange(1, len(found) + 1), middle, yerr=ends.T, color=colour, marker="o", ms=4, linewidth=1.6, capsize=2.5,
        elinewidth=1.1, label=name,
    )  # fmt: skip


def _means(truth: Truth, what: str) -> np.ndarray:
    return np.array([truth.interval(what, depth).estimate for depth in range(1, truth.num_depths + 1)])
