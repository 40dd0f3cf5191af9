"""Figures of attention: patterns over training, each head's at the end, and a gallery of maps.

A head is called by layer and number, both from 1: 2.3 is the third head of the second layer.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worldmtp.analysis.attention_files import AttentionHistory, AttentionMaps, AttentionRecord
from worldmtp.analysis.attention_patterns import MASSES, PATTERNS
from worldmtp.analysis.joined_axis import JoinedAxis
from worldmtp.analysis.panels import GRID, INK, MUTED, REFERENCE, depth_colour, name_axes

_COLOUR_MAP = "Blues"
_MAX_CELLS_WITH_NUMBERS = 64
_MAX_LABELS = 24
_TITLES = {
    "sink": "first token",
    "previous": "token before",
    "induction": "induction",
    "prompt": "prompt",
    "goal": "goal",
    "reply": "replies",
    "entropy": "entropy",
}


def axis_of(history: AttentionHistory) -> JoinedAxis:
    """Return the axis that the evaluations of a run stand on."""
    ends = [max((record.step for record in records), default=0) for records in (history.warm_start, history.run)]
    return JoinedAxis(float(ends[0]), float(ends[1]))


def training_places(history: AttentionHistory) -> Float[np.ndarray, " record"]:
    """Return where each evaluation stands on that axis, in order."""
    axis = axis_of(history)
    warm = axis.of_warm_start([record.step for record in history.warm_start])
    return np.concatenate([warm, axis.of_run([record.step for record in history.run])])


def pattern_curves(history: AttentionHistory) -> Figure | None:
    """Plot every head's mean of each pattern over training, a colour a layer; None without two evaluations."""
    if len(history.records) < 2:
        return None
    means = np.stack([record.sums.mean() for record in history.records])
    floors = np.stack([record.floor for record in history.records])
    places = training_places(history)
    shown = [number for number in range(len(PATTERNS)) if np.isfinite(means[:, number]).any()]
    figure, axes = _grid(len(shown), columns=4, cell=(2.35, 2.1))
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
        axis_of(history).mark(ax)
        name_axes(ax, _TITLES[PATTERNS[number]], "", "nats" if PATTERNS[number] == "entropy" else "mass")
    handles, labels = axes[0].get_legend_handles_labels()
    few = len(labels) if num_layers <= 6 else 0
    if few:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(7, few), fontsize=8, frameon=False)
    return figure


def head_table(record: AttentionRecord) -> Figure:
    """Plot each head's mean of every pattern as a square, layers downwards and heads to the right."""
    means = record.sums.mean()
    shown = [number for number in range(len(PATTERNS)) if np.isfinite(means[number]).all()]
    num_layers, num_heads = means.shape[1:]
    height = min(3.2, 0.9 + 0.28 * num_layers)
    figure, axes = _grid(len(shown), columns=4, cell=(2.35, height))
    for ax, number in zip(axes, shown, strict=True):
        values, name = means[number], PATTERNS[number]
        top = max(float(values.max()), float(record.floor[number]), 1e-9) if name == "entropy" else 1.0
        ax.imshow(values, cmap=_COLOUR_MAP, vmin=0, vmax=top, aspect="auto")
        if values.size <= _MAX_CELLS_WITH_NUMBERS:
            for (layer, head), value in np.ndenumerate(values):
                ink = "white" if value > 0.6 * top else INK
                ax.text(head, layer, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=ink)
        _count(ax, num_layers, num_heads)
        name_axes(ax, f"{_TITLES[name]} ({record.floor[number]:.2f})", "head", "layer")
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


def _grid(number: int, columns: int, cell: tuple[float, float]) -> tuple[Figure, Sequence[Axes]]:
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


def _count(ax: Axes, num_layers: int, num_heads: int) -> None:
    ax.grid(False)
    for side, number, every in (("y", num_layers, max(1, num_layers // 8)), ("x", num_heads, max(1, num_heads // 8))):
        places = range(0, number, every)
        (ax.set_yticks if side == "y" else ax.set_xticks)(places, [str(place + 1) for place in places])


def _layer_colour(layer: int, num_layers: int) -> str:
    return depth_colour(1 + round(layer * 4 / max(1, num_layers - 1)))
