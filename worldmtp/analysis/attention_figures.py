"""Figures of attention: patterns over training, each head's at the end, a gallery of maps, and two runs side by side.

A head is called by layer and number, both from 1: 2.3 is the third head of the second layer.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from worldmtp.analysis.attention_comparison import READINGS, heads_told_apart, reading_columns
from worldmtp.analysis.attention_files import AttentionHistory, AttentionMaps, AttentionRecord
from worldmtp.analysis.attention_patterns import MASSES, PATTERNS, TITLES, PatternSums
from worldmtp.analysis.joined_axis import JoinedAxis
from worldmtp.analysis.panels import ARM_COLOURS, INK, MUTED, REFERENCE, depth_colour, name_axes, panel_grid
from worldmtp.analysis.run_files import RunSteps

_COLOUR_MAP = "Blues"
_DIFFERENCE_COLOURS = "RdBu"
_MAX_CELLS_WITH_NUMBERS = 64
_MAX_LABELS = 24


def axis_of(history: AttentionHistory) -> JoinedAxis:
    """Return the axis that the evaluations of a run stand on."""
    ends = [max((record.step for record in records), default=0) for records in (history.warm_start, history.run)]
    return JoinedAxis(float(ends[0]), float(ends[1]))


def training_places(history: AttentionHistory, axis: JoinedAxis | None = None) -> Float[np.ndarray, " record"]:
    """Return where each evaluation stands on an axis, by default the run's own, in order."""
    axis = axis or axis_of(history)
    warm = axis.of_warm_start([record.step for record in history.warm_start])
    return np.concatenate([warm, axis.of_run([record.step for record in history.run])])


def pattern_curves(history: AttentionHistory, steps: RunSteps) -> Figure | None:
    """Plot every head's mean of each pattern over training, a colour a layer; None without two evaluations."""
    if len(history.records) < 2:
        return None
    means = np.stack([record.sums.mean() for record in history.records])
    floors = np.stack([record.floor for record in history.records])
    places = training_places(history)
    shown = [number for number in range(len(PATTERNS)) if np.isfinite(means[:, number]).any()]
    figure, axes = panel_grid(len(shown), columns=4, cell=(2.35, 2.1))
    num_layers = means.shape[2]
    for ax, number in zip(axes, shown, strict=True):
        for layer in range(num_layers):
            lines = means[:, number, layer]
            ax.plot(places, lines, color=_layer_colour(layer, num_layers), linewidth=1.1, alpha=0.85)
            ax.plot([], [], color=_layer_colour(layer, num_layers), label=f"layer {layer + 1}")
        ax.plot(
            places, floors[:, number], color=REFERENCE, linewidth=1.2, linestyle=(0, (3, 2)), label="all keys alike"
        )
        if PATTERNS[number] in MASSES:
            ax.set_ylim(-0.02, 1.02)
        axis_of(history).mark(ax, steps)
        name_axes(ax, TITLES[PATTERNS[number]], "", "nats" if PATTERNS[number] == "entropy" else "mass")
    handles, labels = axes[0].get_legend_handles_labels()
    few = len(labels) if num_layers <= 6 else 0
    if few:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(7, few), fontsize=8, frameon=False)
    return figure


def head_table(record: AttentionRecord) -> Figure:
    """Plot each head's mean of every pattern as a square, layers downwards and heads to the right."""
    means = record.sums.mean()
    shown = [number for number in range(len(PATTERNS)) if np.isfinite(means[number]).all()]
    height = min(3.2, 0.9 + 0.28 * means.shape[1])
    figure, axes = panel_grid(len(shown), columns=4, cell=(2.35, height))
    for ax, number in zip(axes, shown, strict=True):
        values, name = means[number], PATTERNS[number]
        top = max(float(values.max()), float(record.floor[number]), 1e-9) if name == "entropy" else 1.0
        _draw_heads(ax, values, top)
        name_axes(ax, f"{TITLES[name]} ({record.floor[number]:.2f})", "head", "layer")
    return figure


def gallery(history: AttentionHistory) -> Figure | None:
    """Plot maps of the first text: a column for each pattern's strongest head at the end, a row an evaluation.

    Rows are the first evaluation, the first after the warm start, and the last; None where no file holds maps.
    """
    records = _moments(history)
    if not records or not all(len(record.gallery) for _, record in records):
        return None
    last = records[-1][1]
    heads = {name: found for name in MASSES if (found := last.strongest(name)) is not None}
    columns: dict[tuple[int, int], list[str]] = {}
    for name, found in heads.items():
        columns.setdefault(found, []).append(name)
    figure = Figure(figsize=(9.2, 2.45 * len(records)), layout="constrained")
    axes = figure.subplots(len(records), len(columns), squeeze=False)
    for row, (moment, record) in enumerate(records):
        for ax, ((layer, head), names) in zip(axes[row], columns.items(), strict=True):
            scores = record.sums.mean()[:, layer, head]
            said = ", ".join(f"{name} {scores[PATTERNS.index(name)]:.2f}" for name in names[:2])
            _draw_map(ax, record.gallery, 0, layer, head)
            ax.set_title(f"{moment}: {layer + 1}.{head + 1}\n{said}", fontsize=7.5, color=INK, loc="left")
    return figure


def head_comparison(first: PatternSums, second: PatternSums, *, same_heads: bool) -> Figure:
    """Plot each head's mean of every pattern: a row of panels for either run, and one for second - first.

    Framed are heads whose interval excludes 0. There is no last row where a number is not the same head in both runs,
    as ``same_heads`` says and the shapes of the trunks do. The texts of both answer the same prompts.
    """
    means = first.mean(), second.mean()
    shown = [number for number in range(len(PATTERNS)) if all(np.isfinite(mean[number]).all() for mean in means)]
    has_difference = same_heads and means[0].shape == means[1].shape
    height, num_rows = min(2.6, 0.6 + 0.24 * max(mean.shape[1] for mean in means)), 2 + has_difference
    figure = Figure(figsize=(9.2, height * num_rows + 0.2), layout="constrained")
    axes = figure.subplots(num_rows, len(shown), squeeze=False)
    for column, number in zip(axes.T, shown, strict=True):
        name = PATTERNS[number]
        top = max(float(mean[number].max()) for mean in means) if name == "entropy" else 1.0
        for ax, mean in zip(column, means, strict=False):
            _draw_heads(ax, mean[number], top, font_size=6.0)
        if has_difference:
            change, apart = means[1][number] - means[0][number], heads_told_apart(first, second, name)
            _draw_heads(column[2], change, float(np.abs(change).max()), font_size=6.0, framed=apart)
        column[0].set_title(TITLES[name], fontsize=8.5, color=INK, loc="left")
        column[-1].set_xlabel("head", fontsize=8, color=INK)
    for ax, row in zip(axes[:, 0], ("first", "second", "second - first"), strict=False):
        ax.set_ylabel(f"{row}\nlayer", fontsize=8, color=INK)
    return figure


def curve_comparison(
    histories: Sequence[AttentionHistory], names: Sequence[str], steps: Sequence[RunSteps]
) -> Figure | None:
    """Plot the strongest head (line), of entropy the lowest, and the mean over heads (dashes), a colour a run.

    Runs share an axis where their ``steps`` count the same; else each goes to its own end. None where a run has fewer
    than two evaluations.
    """
    if min(len(history.records) for history in histories) < 2:
        return None
    ends = [axis_of(history) for history in histories]
    warm_end, run_end = max(end.warm_end for end in ends), max(end.run_end for end in ends)
    is_shared = len(set(steps)) == 1
    axes_of_runs = [JoinedAxis(warm_end, run_end if is_shared else end.run_end) for end in ends]
    records = [record for history in histories for record in history.records]
    shown = [name for number, name in enumerate(PATTERNS) if all(np.isfinite(one.floor[number]) for one in records)]
    figure, axes = panel_grid(len(shown), columns=4, cell=(2.35, 2.1))
    for ax, pattern in zip(axes, shown, strict=True):
        for history, axis, name, colour in zip(histories, axes_of_runs, names, ARM_COLOURS, strict=False):
            for reading, style in zip(READINGS, ("--", "-"), strict=True):
                columns = [reading_columns(record.sums, pattern, reading) for record in history.records]
                means = [total.sum() / count.sum() for total, count in columns]
                label = name if style == "-" else None
                ax.plot(training_places(history, axis), means, style, color=colour, linewidth=1.2, label=label)
        if pattern in MASSES:
            ax.set_ylim(-0.02, 1.02)
        axes_of_runs[0].mark(ax, steps[0] if is_shared else None)
        name_axes(ax, TITLES[pattern], "", "nats" if pattern == "entropy" else "mass")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _moments(history: AttentionHistory) -> list[tuple[str, AttentionRecord]]:
    found: dict[int, tuple[str, AttentionRecord]] = {}
    if history.warm_start:
        found[id(history.warm_start[0])] = ("at first", history.warm_start[0])
    if history.run:
        found[id(history.run[0])] = ("before RL", history.run[0])
        found.setdefault(id(history.run[-1]), ("at last", history.run[-1]))
    return list(found.values())


def _draw_map(ax: Axes, maps: AttentionMaps, row: int, layer: int, head: int) -> None:
    """Draw one head's weights, a row for each query that counts, with the tokens along both sides."""
    counts = maps.query_mask[row]
    last = int(maps.lengths[row])
    weights = maps.maps[row, layer, head][counts][:, :last].astype(np.float64)
    ax.imshow(weights, cmap=_COLOUR_MAP, vmin=0, vmax=1, aspect="auto")
    tokens = [_shown(token) for token in maps.tokens[row]]
    if last <= _MAX_LABELS:
        ax.set_xticks(range(last), tokens[:last], fontsize=6.5)
        queries = maps.queries[row][counts]
        ax.set_yticks(range(len(queries)), [tokens[place] for place in queries], fontsize=6.5)
    else:
        ax.set_xlabel("key", fontsize=7)
        ax.set_ylabel("query", fontsize=7)
    ax.tick_params(length=0, colors=INK)
    if 0 < int(maps.prompt_length[row]) < last:
        ax.axvline(int(maps.prompt_length[row]) - 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))


def _shown(token: str) -> str:
    """Return a token as an axis can show it: short, and without dollars, which would be read as formulas."""
    plain = "".join(c if c.isprintable() and c not in "$\\" and ord(c) < 0x2FF else "·" for c in token) or "·"
    return plain if len(plain) <= 3 else f"{plain[:2]}…"


def _draw_heads(
    ax: Axes,
    values: Float[np.ndarray, "layer head"],
    top: float,
    font_size: float = 7.5,
    framed: Bool[np.ndarray, "layer head"] | None = None,
) -> None:
    """Draw a square for each head, layers downwards; values below 0, of differences, in another colour.

    ``top`` has the darkest square, ``framed`` says which squares have a frame.
    """
    is_difference = bool((values < 0).any())
    colours = _DIFFERENCE_COLOURS if is_difference else _COLOUR_MAP
    ax.imshow(values, cmap=colours, vmin=-top if is_difference else 0, vmax=top, aspect="auto")
    if values.size <= _MAX_CELLS_WITH_NUMBERS:
        for (layer, head), value in np.ndenumerate(values):
            ink = "white" if abs(value) > 0.6 * top else INK
            ax.text(head, layer, _number(value), ha="center", va="center", fontsize=font_size, color=ink)
    for layer, head in np.argwhere(framed) if framed is not None else ():
        ax.add_patch(Rectangle((head - 0.44, layer - 0.42), 0.88, 0.84, fill=False, edgecolor=INK, linewidth=1.3))
    ax.grid(False)
    num_layers, num_heads = values.shape
    ax.set_yticks(*_ticks(num_layers))
    ax.set_xticks(*_ticks(num_heads))
    ax.tick_params(colors=MUTED, labelsize=8, length=2)


def _number(value: float) -> str:
    """Return a mass in few characters: .87, -.03."""
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.1f}"


def _ticks(number: int) -> tuple[list[int], list[str]]:
    places = list(range(0, number, max(1, number // 8)))
    return places, [str(place + 1) for place in places]


def _layer_colour(layer: int, num_layers: int) -> str:
    return depth_colour(1 + round(layer * 4 / max(1, num_layers - 1)))
