"""What path-star graphs showed, as a table and a picture."""

import io
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from worldmtp.statistics import bootstrap_interval
from worldmtp.studies.protocol import StudySummary


def summarize_path_star(results: list[dict[str, Any]]) -> StudySummary:
    """Exact match per variant: each seed's, and their mean with its interval over seeds."""
    variants = list(dict.fromkeys(result["variant"] for result in results))
    chance = 1 / results[0]["degree"]
    lines = [
        f"Exact match on {len(results[0]['exact'])} fresh graphs; guessing the arm gives {chance:.3f}.",
        "",
        "| variant | exact match, mean over seeds [90 %] | each seed | first node |",
        "|---|---|---|---|",
    ]
    means = {}
    for name in variants:
        group = [result for result in results if result["variant"] == name]
        exact = np.asarray([np.mean(result["exact"]) for result in group])
        first = np.mean([np.mean(result["first"]) for result in group])
        means[name] = float(exact.mean())
        shown = str(bootstrap_interval(exact, generator=0, unit="seed")) if len(exact) > 1 else f"{exact[0]:.3f}"
        lines.append(f"| {name} | {shown} | {' '.join(f'{value:.3f}' for value in exact)} | {first:.3f} |")
    return StudySummary(
        title="Path-star graphs",
        markdown="\n".join(lines),
        headline=max(means.values()),
        figure=_figure(results, variants, chance),
    )


def _figure(results: list[dict[str, Any]], variants: list[str], chance: float) -> bytes:
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axis = figure.subplots()
    for index, name in enumerate(variants):
        for result in results:
            if result["variant"] == name:
                steps, exact = zip(*((point["step"], point["exact"]) for point in result["curve"]), strict=True)
                label = name if result["seed"] == results[0]["seed"] else None
                axis.plot(steps, exact, color=f"C{index}", label=label, linewidth=1.3)
    axis.axhline(chance, color="k", linestyle=":", label="1 / degree")
    axis.set(xlabel="step", ylabel="exact match on fresh graphs", ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
