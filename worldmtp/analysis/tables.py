"""The numbers of a report as data, beside it: ``metrics.json`` and ``metrics.csv``.

One row a number: of what evaluation, which quantity, at what depth; the estimate, its interval, how many independent
units it is from, of what kind, and by what method. A number without an interval has none. The draws of the bootstrap
are those of the seed 0. What takes the model to know is read from the run's log, which does not say of how many
sequences it is: n is 0.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worldmtp.analysis import metrics
from worldmtp.analysis.metrics import RootedPredictions
from worldmtp.analysis.reply_calibration import calibration_intervals
from worldmtp.analysis.reply_consistency import reply_rows
from worldmtp.analysis.reply_faults import fault_rows
from worldmtp.analysis.return_agreement import return_agreement
from worldmtp.analysis.rolled_along import RATIOS
from worldmtp.analysis.run_files import STARTS, RunFiles, logged_interval
from worldmtp.analysis.verdict import Verdict
from worldmtp.analysis.verdicts import untaught
from worldmtp.atomic_files import write_text
from worldmtp.statistics import Interval

TABLE_VERSION = 1
JSON_FILE, CSV_FILE = "metrics.json", "metrics.csv"

BY_DEPTH = {
    "ce": metrics.cross_entropy,
    "ce_chain": metrics.chain_cross_entropy,
    "gap": metrics.gap,
    "top1": metrics.agreement,
    "accept": metrics.acceptance,
    "survival": metrics.survival,
    "wci": metrics.path_consistency,
    "kl": metrics.path_divergence,
    "entropy": metrics.prediction_entropy,
}
"""Quantities by the names that their tags have."""
_LOGGED_OF_HEADS = ("structural", "error", *RATIOS)
"""Those that take the model, and are logged when it is there: the split of a head's loss, and of the open loop's."""
_AT_EVALUATIONS = "eval/return_realized"
"""A tag that each evaluation logs."""


@dataclass(frozen=True)
class Number:
    """A row of the table; ``depth`` is None where a quantity has none."""

    evaluation: str
    quantity: str
    depth: int | None
    interval: Interval


def numbers(run: RunFiles, rooted: Mapping[str, RootedPredictions]) -> Iterator[Number]:
    """Yield every number of a run that has an interval."""
    for name, predictions in rooted.items():
        for quantity, sums_of in BY_DEPTH.items():
            sums = sums_of(predictions)
            for depth in range(1, predictions.valid.shape[2] + 1):
                interval = sums.interval(depth, generator=0)
                if interval is not None:
                    yield Number(name, quantity, depth, interval)
        yield from (Number(name, *row) for row in _logged_of_heads(run, name))
        found = {"h_eff": metrics.effective_horizon(predictions, generator=0)}
        if name not in untaught(run):
            agreement = return_agreement(run.artefacts[name], generator=0)
            found |= {
                "return_bias": agreement.bias,
                "return_slope": agreement.slope,
                "return_corr": agreement.pearson,
            }
        yield from (Number(name, quantity, None, interval) for quantity, interval in found.items() if interval)
    for name, truth in run.truths.items():
        for quantity in ("loss", "noise", "structural", "error", "accept", "accept_exact"):
            for depth in range(1, truth.num_depths + 1):
                yield Number(name, f"truth/{quantity}", depth, truth.interval(quantity, depth))
        for reader, quantity in enumerate(("belief_r2", "belief_r2_last_token")):
            if (share := truth.belief_r2(reader)) is not None:
                yield Number(name, f"truth/{quantity}", None, share)
    if run.reply_turns is not None:
        yield from (Number("replies", *row) for row in reply_rows(run.reply_turns))
        yield from (Number("replies", *row) for row in fault_rows(run.reply_turns))
        if run.replies is not None:
            for quantity, interval in calibration_intervals(run.replies, run.reply_turns.newest.group).items():
                yield Number("replies", f"reply/{quantity}", None, interval)
    if run.summary is not None:
        for arm in run.summary.arms:
            for quantity, share in {"exact": arm.exact, "exact_sampled": arm.exact_sampled}.items():
                if share is not None:
                    yield Number(arm.artefact, quantity, None, share)


def _logged_of_heads(run: RunFiles, evaluation: str) -> Iterator[tuple[str, int, Interval]]:
    """Yield what a run has logged of its heads at its first evaluation or its last, as quantity, depth and interval.

    A number may be there at one of the two alone, as where answers were too short for a depth.
    """
    evaluated, is_first = run.metrics.get(_AT_EVALUATIONS), evaluation in STARTS
    if evaluated is None or not (is_first or evaluation == list(run.artefacts)[-1]):
        return
    step = float(evaluated.steps[0 if is_first else -1])
    for quantity in _LOGGED_OF_HEADS:
        for depth in range(2, 1 + run.artefacts[evaluation].num_depths):
            interval = logged_interval(run.metrics, f"world_model/depth_{depth}/{quantity}", step)
            if interval is not None:
                yield quantity, depth, interval


def write_tables(run_dir: Path, rows: Sequence[Number], verdicts: Sequence[Verdict]) -> None:
    """Write both files, each whole or not at all."""
    flat = [{**asdict(row), **asdict(row.interval)} for row in rows]
    for row in flat:
        row.pop("interval")
    content: dict[str, Any] = {
        "version": TABLE_VERSION,
        "seed": 0,
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "numbers": flat,
    }
    write_text(run_dir / JSON_FILE, json.dumps(content, indent=1, allow_nan=False) + "\n")
    text = io.StringIO(newline="")
    columns = ["evaluation", "quantity", "depth", "estimate", "low", "high", "level", "unit", "method", "n"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_text(run_dir / CSV_FILE, text.getvalue())
