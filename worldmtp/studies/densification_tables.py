"""What denser supervision was worth, as a table and a picture."""

import io
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from worldmtp.statistics import bootstrap_interval, paired_difference
from worldmtp.studies.protocol import StudySummary

_LEVEL_AT = 0.6
"""The loss and the accuracy to be reached are those of next-token training after this fraction of its tokens."""


def tokens_to_reach(tokens: list[float], values: list[float], level: float, falls: bool) -> float:
    """Tokens at which a curve first crosses ``level``, interpolated between measurements; infinity if it never does.

    A noisy curve counts as having crossed at its first crossing. ``falls`` says which way is better.
    """
    previous: tuple[float, float] | None = None
    for count, value in zip(tokens, values, strict=True):
        if (value <= level) if falls else (value >= level):
            if previous is None:
                return count
            fraction = (level - previous[1]) / (value - previous[1])
            return previous[0] + fraction * (count - previous[0])
        previous = count, value
    return float("inf")


def summarize_densification(results: list[dict[str, Any]], setting: str) -> StudySummary:
    """Each arm beside next-token training of the same seed: the gain is tokens of that over tokens of this.

    ``setting`` says on what: a sentence below the table.
    """
    baseline = {result["seed"]: result for result in results if result["depth"] == 1}
    variants = list(dict.fromkeys(result["variant"] for result in results))
    lines = [
        "| variant | targets a token: nominal, in the text, trained | gain in tokens to loss | in tokens to accuracy "
        "| final loss | less next-token training's | induction | probe accuracy at 2, 4, 8 (embedding, counts) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    gains = {}
    for name in variants:
        group = [result for result in results if result["variant"] == name]
        pairs = [(result, baseline[result["seed"]]) for result in group]
        gains[name] = [_gain(result, base, "loss") for result, base in pairs]
        accuracy = [_gain(result, base, "accuracy") for result, base in pairs]
        lines.append(
            f"| {name} | {group[0]['depth']}x, {group[0]['density']:.2f}x, {group[0]['trained_density']:.2f}x "
            f"| {_gains(gains[name])} | {_gains(accuracy)} | {_final(group, 'loss')} | {_difference(pairs)} "
            f"| {_final(group, 'induction')} | {_probes(group)} |"
        )
    lines += [
        "",
        f"{len(baseline)} seed(s). A gain is tokens of next-token training over tokens of the variant, to what the "
        f"former has after {_LEVEL_AT:.0%} of its own; below 1x heads cost tokens. 90 % intervals over seeds.",
        setting,
    ]
    worth = [float(np.mean(values)) for name, values in gains.items() if name not in _baseline_names(results)]
    return StudySummary(
        title="What denser supervision is worth",
        markdown="\n".join(lines),
        headline=max(worth, default=1.0),
        figure=_figure(results, variants),
    )


def _baseline_names(results: list[dict[str, Any]]) -> set[str]:
    return {result["variant"] for result in results if result["depth"] == 1}


def _column(result: dict[str, Any], name: str) -> list[float]:
    return [float(point[name]) for point in result["curve"]]  # tokens are counted in whole numbers


def _gain(result: dict[str, Any], base: dict[str, Any], name: str) -> float:
    values = _column(base, name)
    level, falls = values[int(_LEVEL_AT * (len(values) - 1))], name == "loss"
    ours = tokens_to_reach(_column(result, "tokens"), _column(result, name), level, falls)
    return tokens_to_reach(_column(base, "tokens"), values, level, falls) / ours


def _gains(values: list[float]) -> str:
    each = " ".join(f"{value:.2f}x" if value > 0 else "not reached" for value in values)
    if len(values) < 2 or min(values) == 0 or min(values) == max(values):
        return each
    return f"{bootstrap_interval(np.asarray(values), generator=0, unit='seed')}: {each}"


def _final(group: list[dict[str, Any]], name: str) -> str:
    return " ".join(f"{_column(result, name)[-1]:.3f}" for result in group)


def _difference(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    if len(pairs) < 2 or pairs[0][0] is pairs[0][1]:
        return "-"
    ours, theirs = ([_column(result, "loss")[-1] for result in side] for side in zip(*pairs, strict=True))
    return str(paired_difference(np.asarray(ours), np.asarray(theirs), generator=0, unit="seed"))


def _probes(group: list[dict[str, Any]]) -> str:
    kinds = ("states", "control", "counts")
    states, control, counts = (np.mean([result["probes"][kind] for result in group], axis=0) for kind in kinds)
    chosen = [offset - 1 for offset in (2, 4, 8) if offset <= len(states)]
    return ", ".join(f"{states[n]:.3f} ({control[n]:.3f}, {counts[n]:.3f})" for n in chosen)


def _figure(results: list[dict[str, Any]], variants: list[str]) -> bytes:
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    panels = figure.subplots(1, 3)
    for index, name in enumerate(variants):
        group, color = [result for result in results if result["variant"] == name], f"C{index}"
        for result in group:
            label = name if result is group[0] else None
            tokens = np.asarray(_column(result, "tokens")) / 1e6
            panels[0].plot(tokens, _column(result, "loss"), color=color, label=label, linewidth=1)
            panels[1].plot(tokens, _column(result, "induction"), color=color, linewidth=1)
        states = np.mean([result["probes"]["states"] for result in group], axis=0)
        panels[2].plot(range(1, len(states) + 1), states, "-o", color=color, markersize=4)
    for kind, style, label in (("control", "k:", "embedding of x_t"), ("counts", "k--", "counts after x_t")):
        control = np.mean([result["probes"][kind] for result in results], axis=0)
        panels[2].plot(range(1, len(control) + 1), control, style, label=label)
    panels[0].set(xlabel="million tokens", ylabel="held-out loss of the next token")
    panels[1].set(xlabel="million tokens", ylabel="induction accuracy", ylim=(0, 1.02))
    panels[2].set(xlabel="tokens ahead", ylabel="accuracy of a linear probe of h_t")
    panels[0].legend(fontsize=7)
    panels[2].legend(fontsize=7)
    for panel in panels:
        panel.grid(alpha=0.3)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
