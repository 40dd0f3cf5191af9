"""The report's figures of imagined episodes: replies by depth, how sure they were, what imagination did in the run."""

import itertools
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from worldmtp.analysis import metrics, reply_metrics
from worldmtp.analysis.metrics import RootedPredictions
from worldmtp.analysis.panels import (
    ARM_COLOURS,
    MUTED,
    add_legend,
    depth_line,
    interval_line,
    make_panels,
    name_axes,
    reliability_line,
)
from worldmtp.analysis.replies import ReplyArtefact
from worldmtp.analysis.reply_consistency import by_entropy, kept, survival_by_turn
from worldmtp.analysis.reply_faults import loop_lines
from worldmtp.analysis.reply_turns import ReplyTurns
from worldmtp.analysis.run_files import Series

_POLICY, _REPLIES = ARM_COLOURS[0], ARM_COLOURS[1]


def reply_depths(artefact: ReplyArtefact, own: RootedPredictions | None) -> Figure:
    """Plot agreement, acceptance and cross-entropy of replies by depth, beside those of the policy's own tokens."""
    figure, axes = make_panels(3, height=3.1)
    panels = (
        ("Top-1 agreement", "share of tokens", reply_metrics.reply_agreement, metrics.agreement),
        ("Acceptance", "probability", reply_metrics.reply_acceptance, metrics.acceptance),
        ("Cross-entropy", "nats per token", reply_metrics.reply_cross_entropy, metrics.cross_entropy),
    )
    deepest = artefact.max_depth
    for ax, (title, unit, of_replies, of_policy) in zip(axes, panels, strict=True):
        depth_line(ax, of_replies(artefact), _REPLIES, 0.0, "replies")
        if own is not None and own.valid.any():
            sums = of_policy(own)
            reached = int(np.flatnonzero(sums.count.sum(axis=0))[-1]) + 1
            depth_line(
                ax, metrics.SequenceSums(sums.total[:, :reached], sums.count[:, :reached]), _POLICY, 0.08, "own tokens"
            )
            deepest = max(deepest, reached)
        name_axes(ax, title, "depth (tokens ahead)", unit)
        ax.set_xticks(range(1, deepest + 1, max(1, deepest // 8)))
        ax.set_xlim(0.5, deepest + 0.5)
    for ax in axes[:2]:
        ax.set_ylim(0, 1.04)
    top = max(0.01, axes[2].get_ylim()[1])  # thousandths of a nat would look like much
    axes[2].set_ylim(-0.02 * top, top)  # so that points at zero are whole
    add_legend(axes[2])
    return figure


def reply_calibration(artefact: ReplyArtefact) -> Figure:
    """Plot the reliability of all tokens of replies, of their first tokens, and of the episode's end."""
    figure, axes = make_panels(3, height=2.9)
    tables = {
        "All tokens": reply_metrics.token_reliability(artefact),
        "First token": reply_metrics.token_reliability(artefact, 1),
        "End of the episode": reply_metrics.end_reliability(artefact),
    }
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        reliability_line(ax, table)
        if np.all(table.accuracy[table.count > 0] == 1) and not table.count[:-1].any():
            ax.text(0.5, 0.5, "all right, and sure of it", ha="center", fontsize=9, color=MUTED)
        error = table.expected_calibration_error
        name_axes(ax, f"{name}: ECE {error:.3f}", "stated probability", "how often true" if ax is axes[0] else "")
    return figure


def answer_consistency(found: ReplyTurns) -> Figure:
    """Plot how long imagined answers stay the real ones, and where they do not: by how sure the model was."""
    figure, axes = make_panels(3, height=3.1)
    by_turn = survival_by_turn(found.newest)
    interval_line(axes[0], by_turn, _REPLIES, "survival")
    reached = found.newest.there.mean(axis=0)
    axes[0].plot(range(1, len(reached) + 1), reached, color=MUTED, linestyle=(0, (4, 2)), label="conversations so long")
    name_axes(axes[0], "Answers kept", "turn", "probability")
    axes[0].set_xticks(range(1, len(by_turn) + 1, max(1, len(by_turn) // 8)))
    add_legend(axes[0])
    edges, strata = by_entropy(found, 1 - kept(found.newest))
    interval_line(axes[1], strata, _REPLIES)
    axes[1].set_xticks(range(1, len(strata) + 1))
    ranges = enumerate(itertools.pairwise(edges), start=1)
    axes[1].set_xticklabels([f"Q{quartile}\n{low:.2f}–{high:.2f}" for quartile, (low, high) in ranges])
    axes[1].set_xlim(0.7, len(strata) + 0.3)
    name_axes(axes[1], "Variation of an answer", "quartile of the prediction's entropy (nats)", "total variation")
    for ax in axes[:2]:
        ax.set_ylim(0, 1.04)
    for (name, line), colour in zip(loop_lines(found).items(), (_POLICY, _REPLIES), strict=True):
        interval_line(axes[2], line, colour, name)
    name_axes(axes[2], "Cost of a reply", "turn", "nats")
    axes[2].set_xticks(axes[0].get_xticks())
    # Thousandths of a nat would look like much, and a cost is cut at 9.2 where a few conversations' interval is not.
    top = min(9.5, max(0.01, axes[2].get_ylim()[1]))
    axes[2].set_ylim(-0.02 * top, top)
    add_legend(axes[2])
    return figure


def imagination_curves(series: Mapping[str, Series]) -> Figure | None:
    """Plot what was promised and what came, the model's held-out error, and the batches trained; None without any."""
    panels = (
        (
            "Promise and outcome",
            "return",
            {"imagination/return_imagined": "imagined", "imagination/return_realized": "real"},
        ),
        (
            "Held-out error",
            "nats per turn",
            {"world_model/reply_nats_before": "before learning", "world_model/reply_nats": "after"},
        ),
        (
            "Imagined batches",
            "batches",
            {"imagination/batches_trusted": "trusted", "imagination/batches_trained": "trained on"},
        ),
    )
    if not any(tag in series for _, _, tags in panels for tag in tags):
        return None
    figure, axes = make_panels(3, height=2.9)
    for ax, (title, unit, tags) in zip(axes, panels, strict=True):
        for colour, (tag, name) in zip((ARM_COLOURS[1], ARM_COLOURS[0]), tags.items(), strict=True):
            if tag in series:
                # Wider and pale, so that it is seen under the line of those trained on.
                width, alpha = (4.0, 0.35) if name == "trusted" else (1.3, 1.0)
                steps, values = series[tag].steps, series[tag].values
                ax.plot(steps, values, color=colour, linewidth=width, alpha=alpha, label=name)
        name_axes(ax, title, "environment tokens", unit)
        ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
        add_legend(ax)
    return figure
