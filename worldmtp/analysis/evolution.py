"""How a run went from its warm start to its end, a row of panels: what is predicted, promised, doubted, looked at.

Acceptance and consistency are of the policy's own tokens, read by its heads; in a world whose turns are single tokens
no head looks ahead, and they are those of its replies, read by the model of replies. A line of attention is one head:
the one with the most weight on the pattern at the last evaluation, followed back to the first; shown are the two
patterns whose heads then stand furthest above the floor.

Left of the dashed border are evaluations during the warm start, over its optimiser steps; right of it is reinforcement,
over environment tokens, or a trainer of TRL's, over its optimiser steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from worldmtp.analysis.attention_patterns import MASSES, PATTERNS
from worldmtp.analysis.joined_axis import JoinedAxis
from worldmtp.analysis.panels import ARM_COLOURS, GRID, INK, MUTED, REFERENCE, add_legend, name_axes
from worldmtp.analysis.run_files import RunFiles

ENTROPY = "eval/entropy"
_NUM_STRETCHES = 24
"""Of a number that every iteration logs, means of so many stretches are drawn."""

Points = Float[np.ndarray, "_"]


@dataclass(frozen=True)
class Line:
    """One quantity from warm start to end, at places of the run's joined axis."""

    places: Float[np.ndarray, " point"]
    values: Float[np.ndarray, " point"]


def evolution_figure(runs: Mapping[str, RunFiles]) -> Figure | None:
    """Plot acceptance, consistency, optimism, entropy and two attention patterns, a row for each run under its title.

    Runs that were not evaluated twice are left out; None if none is left.
    """
    shown = {
        title: run for title, run in runs.items() if ENTROPY in run.spreads and len(run.spreads[ENTROPY].steps) > 1
    }
    if not shown:
        return None
    figure = Figure(figsize=(11.0, 2.3 * len(shown)), layout="constrained")
    parts = np.atleast_1d(np.asarray(figure.subfigures(len(shown), 1)))
    for part, (title, run) in zip(parts, shown.items(), strict=True):
        if len(shown) > 1:
            part.suptitle(title, fontsize=10, color=INK, x=0.004, ha="left")
        _draw_row(part, run)
    return figure


def axis_of(run: RunFiles) -> JoinedAxis:
    """Return the axis of a run's evaluations, which ends with its last logged number."""
    warm = run.warm_start_spreads.get(ENTROPY)
    last = max((float(series.steps[-1]) for series in run.metrics.values()), default=0.0)
    return JoinedAxis(0.0 if warm is None else float(warm.steps.max()), last)


def joined_line(run: RunFiles, tag: str) -> Line | None:
    """Return a logged number over warm start and run; None where neither logged one that is finite."""
    axis = axis_of(run)
    warm, main = run.warm_start.get(tag), run.metrics.get(tag)
    places = [
        *([] if warm is None or not axis.border else [axis.of_warm_start(warm.steps)]),
        *([] if main is None else [axis.of_run(main.steps)]),
    ]
    values = [series.values for series in (warm if axis.border else None, main) if series is not None]
    return _finite(places, values)


def optimism_line(run: RunFiles) -> Line | None:
    """Return imagined less realized return: of held-out episodes, or of the batches as means over stretches of them.

    There is none in a warm start, which teaches nothing about rewards.
    """
    axis = axis_of(run)
    imagined, real = (run.metrics.get(f"imagination/heldout_return_{side}") for side in ("imagined", "real"))
    if imagined is not None and real is not None:
        return _finite([axis.of_run(imagined.steps)], [imagined.values - real.values])
    bias = run.metrics.get("imagination/return_bias")
    if bias is None:
        return None
    parts = np.array_split(np.arange(len(bias)), min(_NUM_STRETCHES, len(bias)))
    places = np.array([axis.of_run(bias.steps[part]).mean() for part in parts])
    return _finite([places], [np.array([bias.values[part].mean() for part in parts])])


def head_lines(run: RunFiles, pattern: str) -> tuple[str, Line, Line] | None:
    """Return the name of the head that looks at a pattern most in the end, its line, and that of its floor.

    None where the texts do not have the pattern, or attention was not read.
    """
    history, axis = run.attention, axis_of(run)
    records = history.records
    strongest = records[-1].strongest(pattern) if records else None
    if strongest is None:
        return None
    number, (layer, head) = PATTERNS.index(pattern), strongest
    places = [
        axis.of_warm_start([record.step for record in history.warm_start]),
        axis.of_run([record.step for record in history.run]),
    ]
    weights = np.array([record.sums.mean()[number, layer, head] for record in records])
    floors = np.array([record.floor[number] for record in records])
    line, floor = _finite(places, [weights]), _finite(places, [floors])
    return None if line is None or floor is None else (f"head {layer + 1}.{head + 1}", line, floor)


def _finite(places: Sequence[Points], values: Sequence[Points]) -> Line | None:
    if not places:
        return None
    where, what = np.concatenate(list(places)), np.concatenate(list(values))
    known = np.isfinite(what)
    return Line(where[known], what[known]) if known.any() else None


def _draw_row(part: Figure | SubFigure, run: RunFiles) -> None:
    found = {pattern: lines for pattern in MASSES if (lines := head_lines(run, pattern)) is not None}
    looks = sorted(found.items(), key=lambda item: item[1][2].values[-1] - item[1][1].values[-1])[:2]
    axes = part.subplots(1, 4 + len(looks), squeeze=False)[0]
    for ax in axes:
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
        ax.grid(axis="y", color=GRID, linewidth=0.8)
        ax.tick_params(colors=MUTED, labelsize=7.5, length=2)
        axis_of(run).mark(ax, run.steps)
    _draw_predictions(axes[0], axes[1], run)
    _draw(axes[2], optimism_line(run), ARM_COLOURS[2], "")
    axes[2].axhline(0, color=REFERENCE, linewidth=1.1, linestyle=(0, (4, 2)))
    name_axes(axes[2], "optimism", "", "imagined − realized return")
    _draw_entropy(axes[3], run)
    for ax, (pattern, (name, line, floor)) in zip(axes[4:], looks, strict=True):
        _draw(ax, line, ARM_COLOURS[3], name)
        ax.plot(floor.places, floor.values, color=REFERENCE, linewidth=1.1, linestyle=(0, (4, 2)), label="all alike")
        ax.set_ylim(-0.02, 1.02)
        name_axes(ax, f"attention: {pattern}", "", "weight")
        add_legend(ax)
    for ax in axes:
        ax.set_title(ax.get_title(loc="left"), loc="left", fontsize=8.5, color=INK, fontweight="bold", pad=5)
        ax.yaxis.label.set_fontsize(8)


def _draw_predictions(first: Axes, second: Axes, run: RunFiles) -> None:
    """Draw acceptance and consistency: of the deepest head that looks ahead, or of replies."""
    depths = [int(tag.split("/")[1].rpartition("_")[2]) for tag in run.metrics if tag.endswith("/wci")]
    ahead = [depth for depth in sorted(depths) if depth > 1 and joined_line(run, f"world_model/depth_{depth}/accept")]
    if ahead:
        for colour, depth in zip(ARM_COLOURS[:2], dict.fromkeys((ahead[0], ahead[-1])), strict=False):
            _draw(first, joined_line(run, f"world_model/depth_{depth}/accept"), colour, f"depth {depth}")
            _draw(second, joined_line(run, f"world_model/depth_{depth}/wci"), colour, f"{depth} tokens")
        add_legend(first)
        add_legend(second)
        named = ("acceptance", "probability", "consistency", "1 − TV of paths")
    else:
        _draw(first, joined_line(run, "world_model/reply_accept"), ARM_COLOURS[0], "")
        _draw(second, joined_line(run, "world_model/reply_whole"), ARM_COLOURS[0], "")
        named = ("replies accepted", "probability", "whole replies right", "share")
    for ax, (title, unit) in zip((first, second), (named[:2], named[2:]), strict=True):
        ax.set_ylim(-0.02, 1.02)
        name_axes(ax, title, "", unit)


def _draw_entropy(ax: Axes, run: RunFiles) -> None:
    """Draw the median of the entropies at the policy's tokens, and a band from the first to the last tenth."""
    axis, warm, main = axis_of(run), run.warm_start_spreads.get(ENTROPY), run.spreads[ENTROPY]
    places, quantiles = [axis.of_run(main.steps)], [main.quantiles]
    if warm is not None:
        places, quantiles = [axis.of_warm_start(warm.steps), *places], [warm.quantiles, *quantiles]
    where, what = np.concatenate(places), np.concatenate(quantiles)
    ax.fill_between(where, what[:, 1], what[:, 3], color=ARM_COLOURS[4], alpha=0.2, linewidth=0)
    ax.plot(where, what[:, 2], color=ARM_COLOURS[4], linewidth=1.5)
    ax.set_ylim(bottom=0)
    name_axes(ax, "entropy", "", "nats, median and 80 %")


def _draw(ax: Axes, line: Line | None, colour: str, label: str) -> None:
    if line is not None:
        ax.plot(line.places, line.values, color=colour, linewidth=1.5, marker="o", ms=2.5, label=label or None)
