"""What a comparison of heads found, as a table and a picture."""

import io
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from worldmtp.statistics import Interval, bootstrap_interval
from worldmtp.studies.protocol import StudySummary

_TEXTS = {
    "greedy": "the trunk's greedy text",
    "sampled": "its samples, temperature 1",
    "held_out": "held-out text (by its author)",
}


def summarize_heads(results: list[dict[str, Any]]) -> StudySummary:
    """Cumulative acceptance and tau of each variant, means over texts and seeds; intervals over texts."""
    variants = list(dict.fromkeys(result["variant"] for result in results))
    by_variant = {name: [result for result in results if result["variant"] == name] for name in variants}
    ranked = sorted(variants, key=lambda name: -_tau(by_variant[name], "greedy").estimate)
    depths = range(2, 2 + len(results[0]["acceptance"]["greedy"][0]))
    columns = " | ".join(f"depth {depth}" for depth in depths)
    lines = []
    for kind, title in _TEXTS.items():
        lines += [
            f"Acceptance on {title}, cumulative (conditional); tau with its 90 % interval over texts:",
            "",
            f"| variant | kind | parameters | {columns} | tau |",
            "|---" * (4 + len(depths)) + "|",
            *(_row(name, by_variant[name], kind) for name in ranked),
            "",
        ]
    best = _tau(by_variant[ranked[0]], "greedy").estimate
    num_seeds = max(len(group) for group in by_variant.values())
    num_texts = len(results[0]["acceptance"]["greedy"])
    lines.append(f"{num_seeds} seed(s) of the heads on one trunk, {num_texts} texts each.")
    return StudySummary(
        title="Head families", markdown="\n".join(lines), headline=best, figure=_figure(by_variant, ranked)
    )


def _row(name: str, group: list[dict[str, Any]], kind: str) -> str:
    mean = _per_text(group, kind).mean(axis=0)
    before = np.concatenate([[1.0], mean[:-1]])
    cells = [f"{a:.3f} ({a / b:.3f})" if b > 0 else "0" for a, b in zip(mean, before, strict=True)]
    size = f"{group[0]['num_parameters'] / 1e6:.2f} M"
    return f"| {name} | {group[0]['kind']} | {size} | {' | '.join(cells)} | {_tau(group, kind)} |"


def _per_text(group: list[dict[str, Any]], kind: str) -> np.ndarray:
    """Cumulative acceptance (text, depth), averaged over seeds: the same texts for all."""
    return np.mean([np.asarray(result["acceptance"][kind]) for result in group], axis=0)


def _tau(group: list[dict[str, Any]], kind: str) -> Interval:
    return bootstrap_interval(1 + _per_text(group, kind).sum(axis=1), generator=0, unit="text")


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
