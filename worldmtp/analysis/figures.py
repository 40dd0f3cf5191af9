"""The report's figures: matplotlib's object interface on Agg, no pyplot and no global settings.

One colour per arm everywhere; depths run from dark to light of one hue; orange is the ideal or the floor that a curve
is read against. Axes carry their unit. Bars and bands are 90 % intervals over sequences.
"""

import base64
import io
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from worldmtp.analysis import metrics
from worldmtp.analysis.artefacts import EvalArtefact
from worldmtp.analysis.metrics import RootedPredictions, reliability
from worldmtp.analysis.panels import (
    ARM_COLOURS,
    INK,
    MUTED,
    REFERENCE,
    add_legend,
    depth_colour,
    depth_line,
    make_panels,
    name_axes,
    reliability_line,
)
from worldmtp.analysis.return_agreement import known_roots
from worldmtp.analysis.run_files import Series

_DPI = 150


def png_data_uri(figure: Figure) -> str:
    """Return the figure as a ``data:`` address."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Picture:
    """A figure as a ``data:`` address, and the width to show it at: 96 pixels an inch."""

    uri: str
    width_pixels: int


def picture(figure: Figure | None) -> Picture | None:
    """Return a figure as a page shows it; None where there is none."""
    return None if figure is None else Picture(png_data_uri(figure), round(figure.get_figwidth() * 96))


def learning_curves(series: Mapping[str, Series], warm_start: Mapping[str, Series]) -> Figure | None:
    """Plot the warm start's loss, return and exact match, and losses of TRL's; None if none of them was recorded."""
    steps = "optimiser steps" if "trl/loss" in series else "environment tokens"
    heads = {tag: f"depth {tag.rpartition('_')[2]}" for tag in sorted(series) if tag.startswith("trl/mtp/loss_depth_")}
    panels = [
        (
            "Warm start",
            "optimiser steps",
            "loss (nats per token)",
            {"sft/loss": "training", "sft/eval_loss": "held out"},
        ),
        # A policy gradient's says nothing.
        ("Trainer's loss", steps, "loss", {} if "rollout/return_mean" in series else {"trl/loss": "training"}),
        ("Heads' loss", steps, "cross-entropy (nats)", heads),
        ("Return of real episodes", steps, "reward", {"rollout/return_mean": "training"}),
        (
            "Exact match",
            steps,
            "share of prompts",
            {"rollout/exact_mean": "training, sampled", "eval/exact": "held out, greedy"},
        ),
    ]
    # Evaluations of the warm start have the run's tags, and steps of their own.
    recorded = {**series, **{tag: curve for tag, curve in warm_start.items() if tag.startswith("sft/")}}
    panels = [panel for panel in panels if any(tag in recorded for tag in panel[3])]
    if not panels:
        return None
    figure, axes = make_panels(len(panels), height=3.0)
    for ax, (title, x, y, labels) in zip(axes, panels, strict=True):
        shown = {tag: label for tag, label in labels.items() if tag in recorded}
        for tag, label in shown.items():
            curve = recorded[tag]
            is_held_out = "eval" in tag
            is_head = tag in heads
            ax.plot(
                curve.steps,
                curve.values,
                color=depth_colour(int(tag.rpartition("_")[2])) if is_head else ARM_COLOURS[1 if is_held_out else 0],
                linewidth=1.6,
                marker="o" if is_held_out or len(curve) == 1 else None,
                ms=4,
                label=label,
            )
        if "eval/exact" in shown:
            _exact_band(ax, series)
            ax.set_ylim(-0.03, 1.03)
        ax.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
        )
        name_axes(ax, title, x, y)
        if len(shown) > 1:
            add_legend(ax)
    return figure


def depth_curves(arms: Mapping[str, RootedPredictions]) -> Figure:
    """Plot acceptance, survival and cross-entropy with its floor, by depth."""
    figure, axes = make_panels(3, height=3.1)
    for place, (arm, rooted) in enumerate(arms.items()):
        colour = ARM_COLOURS[place % len(ARM_COLOURS)]
        offset = 0.06 * (place - (len(arms) - 1) / 2)
        depth_line(axes[0], metrics.acceptance(rooted), colour, offset, arm)
        depth_line(axes[1], metrics.survival(rooted), colour, offset, arm)
        depth_line(axes[2], metrics.cross_entropy(rooted), colour, offset, arm)
        floor = metrics.chain_cross_entropy(rooted).mean()
        axes[2].plot(
            np.arange(1, len(floor) + 1) + offset, floor, color=colour, linestyle=(0, (2, 2)), linewidth=1.2, alpha=0.8
        )
    for ax, title, unit in zip(
        axes,
        ["Acceptance of depth k", "Survival of k drafts", "Cross-entropy of depth k"],
        ["probability", "probability", "nats per token"],
        strict=True,
    ):
        name_axes(ax, title, "depth k (tokens ahead)", unit)
        ax.set_xticks(range(1, 1 + max(rooted.valid.shape[2] for rooted in arms.values())))
    for ax in axes[:2]:
        ax.set_ylim(0, 1.04)
    axes[2].set_ylim(bottom=0)
    axes[2].plot([], [], color=MUTED, linestyle=(0, (2, 2)), linewidth=1.2, label="floor: trunk, one ahead")
    add_legend(axes[2])
    return figure


def entropy_strata(rooted: RootedPredictions) -> Figure:
    """Plot top-1 agreement and acceptance by quartile of the trunk's entropy, a line per depth."""
    figure, axes = make_panels(2, height=3.1)
    quantities = {
        "Top-1 agreement": (rooted.agrees.astype(np.float64), "share of tokens"),
        "Acceptance": (metrics.acceptance_probability(rooted), "probability"),
    }
    for ax, (title, (values, unit)) in zip(axes, quantities.items(), strict=True):
        edges, strata = metrics.by_chain_entropy(rooted, values)
        for depth in range(1, rooted.valid.shape[2] + 1):
            means = [stratum.mean()[depth - 1] for stratum in strata]
            ax.plot(
                range(len(means)),
                means,
                color=depth_colour(depth),
                marker="o",
                ms=4,
                linewidth=1.6,
                label=f"depth {depth}",
            )
        ax.set_xticks(range(len(strata)))
        ax.set_xticklabels(
            [f"Q{q + 1}\n{low:.2f}–{high:.2f}" for q, (low, high) in enumerate(itertools.pairwise(edges))]
        )
        ax.set_ylim(0, 1.04)
        ax.set_xlim(-0.3, len(strata) - 0.7)
        name_axes(ax, title, "quartile of the trunk's entropy (nats)", unit)
    add_legend(axes[0])
    return figure


def reliability_diagrams(rooted: RootedPredictions) -> Figure:
    """Plot a small reliability diagram per depth: confidence against accuracy, with how many tokens stand behind."""
    num_depths = rooted.valid.shape[2]
    figure, axes = make_panels(num_depths, height=2.9)
    for depth, ax in enumerate(axes, start=1):
        table = reliability(rooted, depth)
        reliability_line(ax, table)
        error = table.expected_calibration_error
        name_axes(ax, f"Depth {depth}: ECE {error:.3f}", "confidence", "accuracy" if depth == 1 else "")
    return figure


def return_scatter(artefact: EvalArtefact, against: str = "realized return (reward)") -> Figure | None:
    """Plot imagined against realized return at each root, with means of ten equal-count bins; None without roots.

    ``against`` names what stands in the place of the realized return.
    """
    known = known_roots(artefact)
    if known.sum() < 2:
        return None
    imagined, realized = (
        values[known].astype(np.float64) for values in (artefact.imagined_return, artefact.realized_return)
    )
    figure, axes = make_panels(1, height=4.0, width=4.8)
    ax = axes[0]
    low, high = min(imagined.min(), realized.min()), max(imagined.max(), realized.max())
    pad = 0.05 * (high - low) if high > low else 0.5
    ax.plot(
        [low - pad, high + pad],
        [low - pad, high + pad],
        color=REFERENCE,
        linewidth=1.1,
        linestyle=(0, (4, 2)),
        label="equal",
    )
    ax.scatter(
        imagined,
        realized,
        s=9,
        color=ARM_COLOURS[0],
        alpha=min(0.6, max(0.06, 60 / len(imagined))),
        linewidths=0,
        label="root",
    )
    centres, means = _equal_count_means(imagined, realized)
    ax.plot(centres, means, color=INK, marker="D", ms=4.5, linewidth=1.2, label="mean of a tenth of the roots")
    ax.set_xlim(low - pad, high + pad)
    ax.set_ylim(low - pad, high + pad)
    name_axes(ax, "", "imagined return (reward)", against)
    add_legend(ax)
    return figure


def time_breakdown(seconds: Mapping[str, float]) -> Figure | None:
    """Plot the wall clock per stage, with its share; None without any."""
    if not seconds or sum(seconds.values()) <= 0:
        return None
    ordered = sorted(seconds.items(), key=lambda item: item[1])
    total = sum(seconds.values())
    figure, axes = make_panels(1, height=0.6 + 0.32 * len(ordered), width=7.4)
    ax = axes[0]
    ax.barh([name for name, _ in ordered], [value for _, value in ordered], color=ARM_COLOURS[0], height=0.62)
    for place, (_, value) in enumerate(ordered):
        ax.text(
            value + 0.008 * total, place, f"{value:.1f} s   {value / total:.0%}", va="center", fontsize=8.5, color=INK
        )
    ax.set_xlim(0, 1.16 * max(seconds.values()))
    name_axes(ax, "", "wall clock over the run (s)", "")
    ax.grid(False)
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    return figure


def _exact_band(ax: Axes, series: Mapping[str, Series]) -> None:
    """Draw the interval of the held-out exact match."""
    low, high = series.get("eval/exact_lo90"), series.get("eval/exact_hi90")
    if low is None or high is None or not np.array_equal(low.steps, high.steps):
        return
    points = series.get("eval/exact")
    if points is not None and len(low) > 1 and np.array_equal(low.steps, points.steps):
        ax.fill_between(low.steps, low.values, high.values, color=ARM_COLOURS[1], alpha=0.16, linewidth=0)
    else:  # intervals at some of the points say nothing of those between
        ax.vlines(low.steps, low.values, high.values, color=ARM_COLOURS[1], linewidth=1.4)


def _equal_count_means(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> tuple[list[float], list[float]]:
    bins = [part for part in np.array_split(np.argsort(x, kind="stable"), 10) if len(part) > 0]
    return [float(x[part].mean()) for part in bins], [float(y[part].mean()) for part in bins]
