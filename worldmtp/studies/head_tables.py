"""What a comparison of heads found, as a table and a picture."""

import io
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from worldmtp.statistics import Interval, ratio_interval
from worldmtp.studies.protocol import StudySummary

_TEXTS = {
    "greedy": "the trunk's greedy text",
    "sampled": "its samples, temperature 1",
    "held_out": "held-out text (by its author)",
}


def summarize_heads(results: list[dict[str, Any]], setting: str, compare_with: str = "") -> StudySummary:
    """Cumulative acceptance and tau of each variant, means over texts and seeds, with intervals over files.

    ``setting`` says on what: a sentence below the tables. ``compare_with`` names the variant that the others' tau is
    compared with, text by text; empty leaves that out.
    """
    variants = list(dict.fromkeys(result["variant"] for result in results))
    by_variant = {name: [result for result in results if result["variant"] == name] for name in variants}
    ranked = sorted(variants, key=lambda name: -_tau(by_variant[name], "greedy").estimate)
    depths = range(2, 2 + len(results[0]["acceptance"]["greedy"][0]))
    columns = [*(f"depth {depth}" for depth in depths), "tau"]
    if compare_with:
        columns.append(f"tau less that of {compare_with}")
    lines = []
    for kind, title in _TEXTS.items():
        lines += [
            f"Acceptance on {title}, cumulative (conditional); tau with its 90 % interval over files:",
            "",
            f"| variant | kind | parameters | {' | '.join(columns)} |",
            "|---" * (3 + len(columns)) + "|",
            *(_row(name, by_variant, kind, compare_with) for name in ranked),
            "",
        ]
    best = _tau(by_variant[ranked[0]], "greedy").estimate
    num_seeds = max(len(group) for group in by_variant.values())
    files = results[0]["files"]
    lines.append(
        f"{num_seeds} seed(s) of the heads on one trunk, {len(files)} texts from {len(set(files))} files. {setting}"
    )
    return StudySummary(
        title="Head families", markdown="\n".join(lines), headline=best, figure=_figure(by_variant, ranked)
    )


def _row(name: str, by_variant: dict[str, list[dict[str, Any]]], kind: str, compare_with: str) -> str:
    group = by_variant[name]
    mean = _per_text(group, kind).mean(axis=0)
    before = np.concatenate([[1.0], mean[:-1]])
    cells = [f"{a:.3f} ({a / b:.3f})" if b > 0 else "0" for a, b in zip(mean, before, strict=True)]
    cells.append(str(_tau(group, kind)))
    if compare_with:
        cells.append("" if name == compare_with else str(_tau_difference(group, by_variant[compare_with], kind)))
    size = f"{group[0]['num_parameters'] / 1e6:.2f} M"
    return f"| {name} | {group[0]['kind']} | {size} | {' | '.join(cells)} |"


def _per_text(group: list[dict[str, Any]], kind: str) -> np.ndarray:
    """Cumulative acceptance (text, depth), averaged over seeds: the same texts for all."""
    return np.mean([np.asarray(result["acceptance"][kind]) for result in group], axis=0)


def _tau(group: list[dict[str, Any]], kind: str) -> Interval:
    return _mean_over_texts(1 + _per_text(group, kind).sum(axis=1), group[0]["files"])


def _tau_difference(group: list[dict[str, Any]], reference: list[dict[str, Any]], kind: str) -> Interval:
    difference = _per_text(group, kind).sum(axis=1) - _per_text(reference, kind).sum(axis=1)
    return _mean_over_texts(difference, group[0]["files"])


def _mean_over_texts(values: np.ndarray, files: list[int]) -> Interval:
    """Texts of one file are alike, so files are what is resampled, each with all its texts."""
    _, index = np.unique(files, return_inverse=True)
    return ratio_interval(np.bincount(index, weights=values), np.bincount(index), generator=0, unit="file")


def _figure(by_variant: dict[str, list[dict[str, Any]]], ranked: list[str]) -> bytes:
    figure, colors = Figure(figsize=(11, 4.2), layout="constrained"), colormaps["tab20"]
    axes = figure.subplots(1, len(_TEXTS), sharey=True)
    depths = range(2, 2 + len(by_variant[ranked[0]][0]["acceptance"]["greedy"][0]))
    for axis, (kind, title) in zip(axes, _TEXTS.items(), strict=True):
        for index, name in enumerate(ranked):
            group = by_variant[name]
            mean = _per_text(group, kind).mean(axis=0)
            style = "-o" if group[0]["kind"] == "action_conditional" else "--s"
            axis.plot(depths, mean, style, label=name, color=colors(index % 20), markersize=4, linewidth=1.3)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("depth")
        axis.set_xticks(depths)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("cumulative acceptance")
    axes[-1].legend(fontsize=7, title="solid: action-conditional\ndashed: parallel", title_fontsize=7)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
