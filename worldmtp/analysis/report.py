"""``report.html``: one offline page of a run, from its saved files alone; ``metrics.json`` and ``.csv`` beside it.

Sections in reading order: the verdicts, the headline table, learning curves, what the heads predict by depth, one part
per evaluation (agreement by entropy, calibration, returns, token strips), imagined episodes, where the time went, and
what each number means. What is missing or damaged is named at the top. The same files give the same page.
The words and the layout are those of ``report.html.jinja``; this file fills in numbers, figures and strips.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from worldmtp.analysis import attention_figures, figures, metrics, reply_figures
from worldmtp.analysis.artefacts import EvalArtefact, imagined_strip, token_strip
from worldmtp.analysis.conversations import Episode, chosen_episodes, episode_of, is_conversation, printable
from worldmtp.analysis.evolution import evolution_figure
from worldmtp.analysis.figures import picture
from worldmtp.analysis.metrics import RootedPredictions, rooted_predictions
from worldmtp.analysis.pages import render_page
from worldmtp.analysis.replies import END_MARK, ReplyArtefact, reply_strip
from worldmtp.analysis.reply_metrics import reply_totals
from worldmtp.analysis.reply_part import reply_part
from worldmtp.analysis.return_agreement import return_agreement
from worldmtp.analysis.rolled_along import rolled_along, rolled_along_figure, rolled_along_rows
from worldmtp.analysis.run_files import RunFiles, Series, read_run
from worldmtp.analysis.summary import table_cells
from worldmtp.analysis.tables import numbers, write_tables
from worldmtp.analysis.truth import Truth
from worldmtp.analysis.truth_figures import truth_figure
from worldmtp.analysis.value_truth import ExactValues
from worldmtp.analysis.verdict import Verdict
from worldmtp.analysis.verdicts import untaught, verdicts
from worldmtp.atomic_files import write_text
from worldmtp.statistics import Interval, bootstrap_interval
from worldmtp.tracking.progress import format_seconds
from worldmtp.tracking.strips import strip_blocks
from worldmtp.tracking.tensorboard_writer import tensorboard_command

REPORT_FILE = "report.html"
_TEMPLATE = "report.html.jinja"
_STRIPS_PER_EVALUATION = 6
_STRIP_CHARACTERS = 72
"""What fits into the width of a page in a window of 700 pixels."""
# The whole iteration, not a stage of it.
_NOT_A_STAGE = ("total",)


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` and the tables beside it into the run directory, and return the path of the page.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    run = read_run(run_dir)
    rooted = {name: rooted_predictions(artefact) for name, artefact in run.artefacts.items()}
    judged = verdicts(run, rooted)
    page = render_page(
        _TEMPLATE,
        name=run.run_dir.resolve().name,
        problems=run.problems,
        verdicts=[_verdict(verdict) for verdict in judged],
        headline=_headline(run),
        learning=picture(figures.learning_curves(run.metrics, run.warm_start)),
        evolution=picture(evolution_figure({"": run})),
        depths=_depths(rooted),
        truth=_truth(run.truths),
        rolled=_rolled(run),
        evaluations=[
            _evaluation(name, artefact, rooted[name], name not in untaught(run), run)
            for name, artefact in run.artefacts.items()
        ],
        attention=_attention(run),
        imagined=_imagined(run, rooted),
        answers=_answers(run),
        time=_time(run.metrics),
        command=tensorboard_command(run.run_dir),
        config=run.config,
    )
    write_tables(run_dir, list(numbers(run, rooted)), judged)
    target = run_dir / REPORT_FILE
    write_text(target, page)
    return target


def _verdict(verdict: Verdict) -> dict[str, Any]:
    found = verdict.interval
    return {
        "topic": verdict.topic,
        "outcome": verdict.outcome,
        "number": verdict.number,
        "rule": verdict.rule,
        "interval": "-" if found is None else str(found),
        "n": f"{found.n} {found.unit}s" if found is not None and found.n else "",
        "sentence": verdict.sentence,
    }


def _headline(run: RunFiles) -> dict[str, Any] | None:
    if run.summary is None:
        return None
    header, *rows = table_cells(run.summary)
    return {
        "header": header,
        "rows": rows,
        "wall_clock": format_seconds(run.summary.wall_clock_seconds),
        "machine": run.summary.machine,
        "notes": run.summary.notes,
    }


def _depths(rooted: Mapping[str, RootedPredictions]) -> dict[str, Any] | None:
    reaching = {name: item for name, item in rooted.items() if item.valid[:, :, 0].any()}
    if not reaching:
        return None
    if not any(item.valid.shape[2] == 1 or item.valid[:, :, 1:].any() for item in reaching.values()):
        return {"figure": None}  # the trunk alone would be drawn, and nothing in the table is defined
    rows = [_depth_row(name, item) for name, item in reaching.items()]
    return {"figure": picture(figures.depth_curves(reaching)), "rows": rows}


def _depth_row(name: str, rooted: RootedPredictions) -> list[str]:
    last = rooted.valid.shape[2]
    return [
        name,
        str(int(rooted.valid[:, :, 0].any(axis=1).sum())),
        str(int(rooted.valid[:, :, 0].sum())),
        _interval(metrics.effective_horizon(rooted, generator=0)),
        _interval(metrics.path_divergence(rooted).interval(last, generator=0)),
        _interval(metrics.agreement(rooted).interval(last, generator=0)),
    ]


def _truth(truths: Mapping[str, Truth]) -> dict[str, Any] | None:
    """Return what heads say beside the law of their texts, where it is known: a row a depth and evaluation."""
    if not truths:
        return None
    first = next(iter(truths.values()))
    rows = [
        [
            name,
            str(depth),
            *(f"{truth.interval(column, depth).estimate:.3f}" for column in ("noise", "structural", "loss")),
            str(truth.interval("error", depth)),
            *(f"{truth.interval(column, depth).estimate:.3f}" for column in ("accept", "accept_exact")),
        ]
        for name, truth in truths.items()
        for depth in range(1, truth.num_depths + 1)
    ]
    beliefs = [[name, *(_interval(truth.belief_r2(reader)) for reader in (0, 1))] for name, truth in truths.items()]
    return {
        "figure": picture(truth_figure(truths)),
        "rows": rows,
        "beliefs": beliefs,
        "told": bool(first.told),
        "num_texts": len(first.loss),
        "num_test": len(first.belief_spread),
    }


def _rolled(run: RunFiles) -> dict[str, Any] | None:
    """Return how the world model fares as it is rolled along, where the run has measured it."""
    found = rolled_along(run.metrics, run.truths)
    rows = rolled_along_rows(found)
    return {"figure": picture(rolled_along_figure(found)), "rows": rows} if rows else None


def _evaluation(
    name: str, artefact: EvalArtefact, rooted: RootedPredictions, is_taught: bool, run: RunFiles
) -> dict[str, Any]:
    num_prefixes = int(rooted.valid[:, :, 0].sum())
    if num_prefixes == 0:
        return {"name": name, "num_prefixes": 0}
    return {
        "name": name,
        "num_sequences": len(artefact),
        "num_prefixes": num_prefixes,
        "horizon": artefact.imagined_horizon,
        "strata": picture(figures.entropy_strata(rooted)),
        "calibration": picture(figures.reliability_diagrams(rooted)),
        "is_taught": is_taught,
        "returns": _returns(artefact, run.metrics) if is_taught else None,
        "exact_values": _values(artefact, run.exact_values.get(name)) if is_taught else None,
        "conversations": _conversations(artefact),
        "strips": [_strip(artefact, row, rank) for row, rank in _chosen(rooted)],
    }


def _returns(artefact: EvalArtefact, logged: Mapping[str, Series]) -> dict[str, Any] | None:
    figure = figures.return_scatter(artefact)
    if figure is None:
        return None
    agreement = return_agreement(artefact, generator=0)
    ranks = ["undefined" if rank is None else f"{rank:.3f}" for rank in (agreement.spearman, agreement.kendall)]
    return {
        "figure": picture(figure),
        "num_roots": agreement.num_roots,
        "num_sequences": agreement.num_sequences,
        "row": [_interval(agreement.bias), _interval(agreement.slope), _interval(agreement.pearson), *ranks],
        "ceiling": _ceiling(logged),
    }


def _values(artefact: EvalArtefact, exact: ExactValues | None) -> dict[str, Any] | None:
    """Return imagined returns beside exact values, where the policy's answers were enumerated."""
    if exact is None:
        return None
    figure = figures.return_scatter(exact.instead_of_draws(artefact), "exact value (reward)")
    if figure is None:
        return None
    agreement, drawn = exact.agreement(artefact), exact.of_draws(artefact)
    return {
        "figure": picture(figure),
        "num_roots": agreement.num_roots,
        "num_sequences": agreement.num_sequences,
        "row": [_interval(one) for one in (agreement.bias, agreement.slope, agreement.pearson, drawn.pearson)],
        "missing": f"{exact.missing:.1g}",
    }


def _ceiling(logged: Mapping[str, Series]) -> str | None:
    """Return the median of the last noise ceilings of training batches; None where there is none."""
    series = logged.get("imagination/return_ceiling")
    known = [] if series is None else [value for value in series.values if np.isfinite(value)]
    return f"{float(np.median(known[-8:])):.2f}" if known else None


def _conversations(artefact: EvalArtefact) -> list[dict[str, Any]]:
    """Return the episodes of lowest, middle and highest return, turn by turn, where a world replies."""
    if not is_conversation(artefact):
        return []
    told = [(row, rank, episode_of(artefact, row)) for row, rank in chosen_episodes(artefact)]
    return [{"row": row, "rank": rank} | _turn_by_turn(episode) for row, rank, episode in told]


def _turn_by_turn(episode: Episode) -> dict[str, Any]:
    rows = [{"speaker": one.speaker, "text": printable(one.text), "reward": one.paid} for one in episode.utterances]
    return {"outcome": episode.outcome, "rows": rows}


def _imagined(run: RunFiles, rooted: Mapping[str, RootedPredictions]) -> dict[str, Any] | None:
    """Return replies as foretold, beside the policy's own tokens in the last evaluation, and imagined episodes."""
    found = run.replies
    if found is None:
        return None
    totals = reply_totals(found)
    own = list(rooted.values())[-1] if rooted else None
    numbers = (totals.whole, totals.top1, totals.accept, totals.ece, totals.end_ece, totals.reward_error)
    scores = {"real": found.real_scores, "imagined": found.imagined_scores}
    return {
        "curves": picture(reply_figures.imagination_curves(run.metrics)),
        "depths": picture(reply_figures.reply_depths(found, own)),
        "calibration": picture(reply_figures.reply_calibration(found)),
        "num_conversations": totals.num_conversations,
        "num_turns": totals.num_turns,
        "row": [f"{number:.3f}" for number in numbers],
        "scores": [[name, *_means(values)] for name, values in scores.items()],
        "num_pairs": len(found.real_scores),
        "pairs": [
            {"rank": pair.rank, "sides": {"real": _turn_by_turn(pair.real), "imagined": _turn_by_turn(pair.imagined)}}
            for pair in found.pairs
        ],
        "end_mark": END_MARK,
        "strips": [strip_blocks(reply_strip(found, row), _STRIP_CHARACTERS) for row in _rewarded_and_not(found)],
    }


def _answers(run: RunFiles) -> dict[str, Any] | None:
    """Return how far imagined conversations are the real ones."""
    found = run.reply_turns
    if found is None:
        return None
    return reply_part(found, run.replies) | {"figure": picture(reply_figures.answer_consistency(found))}


def _means(values: Float[np.ndarray, "pair 3"]) -> list[str]:
    if len(values) < 2:
        return [f"{value:.3f}" for value in values.sum(axis=0)]
    return [str(bootstrap_interval(column, generator=0)) for column in values.T]


def _rewarded_and_not(found: ReplyArtefact) -> list[int]:
    """Return the newest conversation with the highest return, the one with the lowest, and the newest of all."""
    newest_first = np.arange(len(found.tokens))[::-1]
    returns = found.rewards.sum(axis=1)[newest_first]
    return list(dict.fromkeys(int(newest_first[place]) for place in (returns.argmax(), returns.argmin(), 0)))


def _strip(artefact: EvalArtefact, row: int, rank: str) -> dict[str, Any]:
    """Return a sequence with what was predicted of it and, where anything was, what was imagined."""
    is_imagined = np.isfinite(artefact.imagined_token_prob[row]).any()
    return {
        "row": row,
        "rank": rank,
        "total": f"{artefact.returns[row]:.3g}",
        "exact": bool(artefact.exact[row]),
        "predicted": strip_blocks(token_strip(artefact, row), _STRIP_CHARACTERS),
        "imagined": strip_blocks(imagined_strip(artefact, row), _STRIP_CHARACTERS) if is_imagined else None,
    }


def _chosen(rooted: RootedPredictions) -> list[tuple[int, str]]:
    """Return the two lowest, middle and highest rows by mean acceptance over depths from 2 on, or depth 1 alone."""
    sums = metrics.acceptance(rooted)
    first = 1 if rooted.valid.shape[2] > 1 and sums.count[:, 1:].any() else 0
    count = sums.count[:, first:].sum(axis=1)
    rows: Int[np.ndarray, " n"] = np.flatnonzero(count > 0)
    ordered = rows[np.argsort(sums.total[rows, first:].sum(axis=1) / count[rows], kind="stable")]
    if len(ordered) <= _STRIPS_PER_EVALUATION:
        return [(int(row), f"{place + 1} of {len(ordered)} by acceptance") for place, row in enumerate(ordered)]
    middle = len(ordered) // 2
    return [
        (int(ordered[place]), f"{label} acceptance")
        for place, label in [
            (0, "lowest"), (1, "second lowest"), (middle - 1, "middle"), (middle, "middle"),
            (-2, "second highest"), (-1, "highest"),
        ]
    ]  # fmt: skip


def _attention(run: RunFiles) -> dict[str, Any] | None:
    history = run.attention
    if not history.records:
        return None
    return {
        "curves": picture(attention_figures.pattern_curves(history, run.steps)),
        "heads": picture(attention_figures.head_table(history.records[-1])),
        "gallery": picture(attention_figures.gallery(history)),
        "num_texts": int((history.records[-1].sums.count[-1] > 0).sum()),
        "num_queries": int(history.records[-1].sums.count[-1].sum()),
    }


def _time(series: Mapping[str, Series]) -> dict[str, Any] | None:
    figure = figures.time_breakdown(stage_seconds(series))
    if figure is None:
        return None
    share = series.get("time/env_fraction")
    if share is None or not np.isfinite(share.values).any():
        return {"figure": picture(figure), "env_share": None}
    return {"figure": picture(figure), "env_share": f"{float(np.nanmean(share.values)):.1%}"}


def stage_seconds(series: Mapping[str, Series]) -> dict[str, float]:
    """Return the wall clock summed over the run for each recorded stage."""
    totals = {
        tag.removeprefix("time/").removesuffix("_seconds"): float(np.nansum(curve.values))
        for tag, curve in series.items()
        if tag.startswith("time/") and tag.endswith("_seconds")
    }
    return {name.replace("_", " "): value for name, value in totals.items() if name not in _NOT_A_STAGE}


def _interval(interval: Interval | None) -> str:
    return "undefined" if interval is None else str(interval)
