"""Exposure and context of a run, as its log has them: the world model rolled along, beside what nobody could avoid.

``open_loop`` says what they are and ``world_model/depth_k/*`` is where a run logs them, at its first evaluation and its
last. A context above 1 is no fault by itself, since nobody knows the tokens in between: with the split of the same
heads' loss it should be (noise + structural gap) / noise, by the trunk, or by the law where that is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from worldmtp.analysis.panels import ARM_COLOURS, REFERENCE, add_legend, make_panels, name_axes
from worldmtp.analysis.run_files import Series, logged_interval
from worldmtp.analysis.truth import Truth
from worldmtp.statistics import Interval

RATIOS = {"exposure": "Exposure", "context": "Context", "open_loop": "Product"}
"""Names in tags, and titles."""
_ROUNDING = 1e-9
"""Nats of noise that are none."""


@dataclass(frozen=True)
class RolledAlong:
    """One evaluation: a ratio's interval by (name, depth), and the context of a right model, where it is known."""

    ratios: Mapping[tuple[str, int], Interval]
    explained: Mapping[int, float]

    @property
    def depths(self) -> list[int]:
        """Return the depths of which all three ratios are known."""
        known = [{depth for one, depth in self.ratios if one == name} for name in RATIOS]
        return sorted(set.intersection(*known))


def rolled_along(logged: Mapping[str, Series], truths: Mapping[str, Truth]) -> dict[str, RolledAlong]:
    """Return the first evaluation that has the ratios and the last, by name; nothing where none was logged."""
    steps = sorted({step for tag, series in logged.items() if tag.endswith("/exposure") for step in series.steps})
    found: dict[str, RolledAlong] = {}
    for name, step in zip(("first", "last"), dict.fromkeys([*steps[:1], *steps[-1:]]), strict=False):
        ratios: dict[tuple[str, int], Interval] = {}
        explained: dict[int, float] = {}
        for tag in logged:
            group, _, rest = tag.partition("/depth_")
            depth, _, ratio = rest.partition("/")
            if group != "world_model" or ratio not in RATIOS:
                continue
            interval = logged_interval(logged, tag, step)
            if interval is not None:
                ratios[ratio, int(depth)] = interval
                explained |= _explained(logged, int(depth), step, truths)
        found[name] = RolledAlong(ratios, explained)
    return found


def rolled_along_figure(found: Mapping[str, RolledAlong]) -> Figure | None:
    """Plot the three ratios by depth, a line an evaluation; None where no depth has them."""
    if not any(one.depths for one in found.values()):
        return None
    figure, axes = make_panels(len(RATIOS), height=3.0)
    for ax, (ratio, title) in zip(axes, RATIOS.items(), strict=True):
        for place, (name, one) in enumerate(found.items()):
            intervals = [one.ratios[ratio, depth] for depth in one.depths]
            middle = np.array([each.estimate for each in intervals])
            ends = [[max(0.0, each.estimate - each.low), max(0.0, each.high - each.estimate)] for each in intervals]
            ax.errorbar(
                one.depths, middle, yerr=np.array(ends).T, color=ARM_COLOURS[place], marker="o", ms=4, linewidth=1.6,
                capsize=2.5, elinewidth=1.1, label=f"{name} evaluation",
            )  # fmt: skip
        last = list(found.values())[-1]
        known = {"exposure": dict.fromkeys(last.depths, 1.0), "context": last.explained, "open_loop": last.explained}
        floor = {depth: value for depth, value in known[ratio].items() if depth in last.depths}
        ax.plot(
            list(floor),
            list(floor.values()),
            color=REFERENCE,
            linestyle=(0, (4, 2)),
            linewidth=1.3,
            label="right model",
        )
        name_axes(ax, title, "depth k (tokens ahead)", "ratio of losses")
        ax.set_xticks(last.depths)
    add_legend(axes[0])
    return figure


def rolled_along_rows(found: Mapping[str, RolledAlong]) -> Sequence[list[str]]:
    """Return the table: evaluation, depth, the three ratios with intervals, the context of a right model."""
    return [
        [
            name,
            str(depth),
            *(str(one.ratios[ratio, depth]) for ratio in RATIOS),
            f"{one.explained[depth]:.3f}" if depth in one.explained else "-",
        ]
        for name, one in found.items()
        for depth in one.depths
    ]


def _explained(logged: Mapping[str, Series], depth: int, step: float, truths: Mapping[str, Truth]) -> dict[int, float]:
    """Return (noise + structural gap) / noise at a depth: of the law, else by the trunk; nothing where no noise is."""
    truth = next(iter(truths.values()), None)
    if truth is not None and depth <= truth.num_depths:
        noise, gap = (truth.interval(part, depth).estimate for part in ("noise", "structural"))
    else:
        values = [
            logged[tag].at(step)
            for tag in (f"world_model/depth_{depth}/{part}" for part in ("ce_chain", "structural"))
            if tag in logged
        ]
        if len(values) < 2 or None in values:
            return {}
        noise, gap = (float(value) for value in values if value is not None)
    return {depth: (noise + gap) / noise} if noise > _ROUNDING and np.isfinite(gap) else {}
