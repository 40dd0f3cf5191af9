"""What the studies' summaries are made of: results by variant, tables in markdown, and figures as PNG."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from worldmtp.statistics import bootstrap_interval

Results = list[dict[str, Any]]
"""Of some arms, each with at least its ``variant`` and its ``seed``."""


def by_variant(results: Results) -> dict[str, Results]:
    """Return each variant's results, in the order in which the variants first appear."""
    names = dict.fromkeys(result["variant"] for result in results)
    return {name: [result for result in results if result["variant"] == name] for name in names}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in [header, *rows]]
    return [lines[0], "|---" * len(header) + "|", *lines[1:]]


def over_seeds(values: Sequence[float]) -> str:
    """Return the mean of one number per seed with its interval; of a single seed the number."""
    return (
        f"{values[0]:.3f}"
        if len(values) == 1
        else str(bootstrap_interval(np.asarray(values), generator=0, unit="seed"))
    )


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG, with a faint grid in each panel."""
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
