"""``report.html``: one offline page of a run, from its saved files alone.

Sections in reading order: the headline table, learning curves, what the heads predict by depth, one part per
evaluation (agreement by entropy, calibration, returns, token strips), where the time went, and what each number means.
What is missing or damaged is named at the top. The same files give the same page.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure

from worldmtp.analysis import figures, html, metrics
from worldmtp.analysis.artefacts import EvalArtefact
from worldmtp.analysis.return_agreement import ReturnAgreement, return_agreement
from worldmtp.analysis.rooted import RootedPredictions, rooted_predictions
from worldmtp.analysis.run_files import RunFiles, Series, read_run
from worldmtp.analysis.summary import header_cells, row_cells
from worldmtp.analysis.token_strips import imagined_strip, strip_data_uri, token_strip
from worldmtp.atomic_files import write_text
from worldmtp.statistics import Interval
from worldmtp.tracking.progress import format_seconds
from worldmtp.tracking.tensorboard import tensorboard_command

REPORT_FILE = "report.html"
_STRIPS_PER_EVALUATION = 6
# The whole iteration, not a stage of it.
_NOT_A_STAGE = ("total",)

_MEANINGS = (
    (
        "exact match",
        "share of held-out prompts whose greedy answer the task's own scorer calls exactly right",
        "1 is best",
    ),
    (
        "acceptance of depth k",
        "mean of min(1, q_k / p) at the realized token: how often a token drafted k ahead would be kept. One minus it "
        "is the mean total variation between head and trunk",
        "1 at depth 1, which is the trunk; falls where the text is unpredictable, whatever the head is worth",
    ),
    ("survival of k drafts", "mean of the product of these over depths 1..k: k drafts in a row are kept", "1 is best"),
    (
        "cross-entropy and floor",
        "mean of -log q_k of the realized token; the floor is the trunk's own, one token ahead",
        "the gap holds both what nobody can know k tokens ahead and what the head has not learnt",
    ),
    ("top-1 agreement", "share of tokens where the head's most probable token is the realized one", "1 is best"),
    (
        "ECE",
        "mean distance between stated confidence and accuracy, over ten bins",
        "0 is best, but stating the base rate has 0 too: read it beside the cross-entropy",
    ),
    (
        "bias, slope, correlation",
        "of imagined against realized return at the same prefixes: mean difference, regression of realized on "
        "imagined, Pearson",
        "0, 1, and as high as the chance in a single realized return allows",
    ),
    (
        "[low, high]",
        "90 % intervals; sequences, not tokens, are resampled (percentile bootstrap from ten sequences on, Student's t "
        "on the jackknife below; Wilson's for a share of prompts)",
        "pointwise, not for all depths at once",
    ),
)


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into the run directory and return its path.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    run = read_run(run_dir)
    rooted = {name: rooted_predictions(artefact) for name, artefact in run.artefacts.items()}
    body = [
        html.heading(f"Run {run.run_dir.resolve().name}", level=1),
        html.paragraph(
            "Predicted beside realized: what the heads and the imagination said, and what happened.", "lead"
        ),
    ]
    if run.problems:
        body.append(html.notice("Not in this report", run.problems))
    body += _headline(run)
    body += _learning(run)
    body += _depths(rooted)
    for name, artefact in run.artefacts.items():
        body += _evaluation(name, artefact, rooted[name])
    body += _time(run.metrics)
    body += [
        html.heading("What the numbers mean"),
        html.table(["number", "how it is made", "how to read it"], _MEANINGS, "prose"),
    ]
    body += _reproduce(run)
    target = run_dir / REPORT_FILE
    write_text(target, html.page(f"worldmtp: {run.run_dir.resolve().name}", body))
    return target


def _headline(run: RunFiles) -> list[str]:
    if run.summary is None:
        return []
    return [
        html.heading("Headline"),
        html.table(header_cells(run.summary), [row_cells(arm, run.summary) for arm in run.summary.arms]),
        html.paragraph(
            f"Held-out prompts; {format_seconds(run.summary.wall_clock_seconds)} wall clock on {run.summary.machine}. "
            "accept dk is the acceptance of depth k; depth 1 is the trunk itself and always 1."
        ),
        *(html.paragraph(note) for note in run.summary.notes),
    ]


def _learning(run: RunFiles) -> list[str]:
    figure = figures.learning_curves(run.metrics, run.warm_start)
    if figure is None:
        return []
    return [
        html.heading("Learning"),
        _picture(
            figure,
            "Loss of the warm start, return and exact match over the run",
            "Means over the episodes of each iteration; held-out points with their 90 % interval over prompts. "
            "Training samples, evaluation decodes greedily: the two curves of exact match are not the same quantity.",
        ),
    ]


def _depths(rooted: Mapping[str, RootedPredictions]) -> list[str]:
    reaching = {name: item for name, item in rooted.items() if item.valid[:, :, 0].any()}
    if not reaching:
        return []
    rows = [_depth_row(name, item) for name, item in reaching.items()]
    return [
        html.heading("What the heads know of the next tokens"),
        _picture(
            figures.depth_curves(reaching),
            "Acceptance, survival and cross-entropy by depth",
            "Bars are 90 % intervals over sequences. Dashed: the trunk's own cross-entropy on the same tokens. Depth k "
            "is averaged over prefixes with k policy tokens ahead, so deeper points are means over fewer prefixes.",
        ),
        html.table(
            [
                "evaluation",
                "sequences",
                "prefixes",
                "drafts kept per prefix",
                "KL of paths, nats",
                "top-1 at last depth",
            ],
            rows,
        ),
    ]


def _depth_row(name: str, rooted: RootedPredictions) -> list[str]:
    last = rooted.valid.shape[2]
    kept = metrics.effective_horizon(rooted, generator=0)
    return [
        name,
        str(int(rooted.valid[:, :, 0].any(axis=1).sum())),
        str(int(rooted.valid[:, :, 0].sum())),
        _interval(kept),
        _interval(metrics.path_divergence(rooted).interval(last, generator=0)),
        _interval(metrics.agreement(rooted).interval(last, generator=0)),
    ]


def _evaluation(name: str, artefact: EvalArtefact, rooted: RootedPredictions) -> list[str]:
    body = [html.heading(f"Evaluation: {name}")]
    if not rooted.valid[:, :, 0].any():
        return [*body, html.paragraph("No prefix of this evaluation has a policy token that depth 1 spoke of.")]
    count = f"{len(artefact)} sequences, {int(rooted.valid[:, :, 0].sum())} prefixes."
    body += [
        html.heading("Agreement by how uncertain the trunk was", level=3),
        _picture(
            figures.entropy_strata(rooted),
            "Agreement and acceptance by quartile of the trunk's entropy",
            f"{count} Quartiles of the trunk's entropy at the token spoken of; ties fall into the lower one, so a "
            "nearly deterministic policy leaves some empty.",
        ),
        html.heading("Calibration", level=3),
        _picture(
            figures.reliability_diagrams(rooted),
            "Reliability per depth",
            "Accuracy of the most probable token against its stated probability; the dashed line is perfect. Grey "
            "bars: share of the tokens in each bin.",
        ),
    ]
    body += _returns(artefact)
    body += _strips(artefact, rooted)
    return body


def _returns(artefact: EvalArtefact) -> list[str]:
    figure = figures.return_scatter(artefact)
    if figure is None:
        return [html.paragraph("No imagined return was computed in this evaluation.")]
    agreement = return_agreement(artefact, generator=0)
    return [
        html.heading("Imagined and realized return", level=3),
        _picture(
            figure,
            "Imagined against realized return",
            f"{agreement.num_roots} prefixes of {agreement.num_sequences} sequences, imagined "
            f"{artefact.imagined_horizon} tokens ahead. A realized return is one sample: even a perfect imagination "
            "scatters around the line, but its bin means lie on it.",
        ),
        html.table(["bias", "slope", "Pearson", "Spearman"], [_agreement_row(agreement)]),
    ]


def _agreement_row(agreement: ReturnAgreement) -> list[str]:
    rank = "undefined" if agreement.spearman is None else f"{agreement.spearman:.3f}"
    return [_interval(agreement.bias), _interval(agreement.slope), _interval(agreement.pearson), rank]


def _strips(artefact: EvalArtefact, rooted: RootedPredictions) -> list[str]:
    body = [
        html.heading("Texts, as predicted and as they came", level=3),
        html.paragraph(
            "Each cell stands under the token it speaks of: what depth k held most probable k tokens before. Green "
            "agrees, red and underlined does not; the deeper the colour, the more probable it was held. Prompt grey, "
            "answer blue. The sequences are those of lowest, middle and highest mean acceptance."
        ),
    ]
    for row, rank in _chosen(rooted):
        uri, width = strip_data_uri(token_strip(artefact, row))
        outcome = "exact" if artefact.exact[row] else "not exact"
        caption = f"Sequence {row}, {rank}: return {artefact.returns[row]:.3g}, {outcome}."
        body.append(html.figure(uri, f"Token strip of sequence {row}", caption, width_pixels=width))
    imagined = [(row, rank) for row, rank in _chosen(rooted) if np.isfinite(artefact.imagined_token_prob[row]).any()]
    if imagined:
        body.append(html.heading("Texts, as imagined and as they came", level=3))
        body.append(
            html.paragraph(
                f"A row goes on from the realized prefix, {artefact.imagined_horizon} tokens in imagination, each time "
                "by the token it holds most likely itself: after the first disagreement it follows another text."
            )
        )
    for row, rank in imagined:
        uri, width = strip_data_uri(imagined_strip(artefact, row))
        caption = f"Sequence {row}, {rank}. Row n was imagined after n realized tokens of the answer."
        body.append(html.figure(uri, f"Imagined continuations of sequence {row}", caption, width_pixels=width))
    return body


def _chosen(rooted: RootedPredictions) -> list[tuple[int, str]]:
    """Rows by mean acceptance over depths from 2 on, or depth 1 if it is alone: two lowest, middle and highest."""
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


def _time(series: Mapping[str, Series]) -> list[str]:
    seconds = stage_seconds(series)
    figure = figures.time_breakdown(seconds)
    if figure is None:
        return []
    parts = [
        html.heading("Where the time went"),
        _picture(
            figure,
            "Wall clock per stage",
            "Sums over the run of each recorded stage; shares are of their sum. A stage inside another, say scoring "
            "inside rollout, is counted in both if the run recorded it so.",
        ),
    ]
    fraction = series.get("time/env_fraction")
    if fraction is not None and np.isfinite(fraction.values).any():
        mean = float(np.nanmean(fraction.values))
        parts.append(
            html.paragraph(f"The environment, its scorer included, took {mean:.1%} of an iteration on average.")
        )
    return parts


def stage_seconds(series: Mapping[str, Series]) -> dict[str, float]:
    """Wall clock summed over the run for each recorded stage."""
    totals = {
        tag.removeprefix("time/").removesuffix("_seconds"): float(np.nansum(curve.values))
        for tag, curve in series.items()
        if tag.startswith("time/") and tag.endswith("_seconds")
    }
    return {name.replace("_", " "): value for name, value in totals.items() if name not in _NOT_A_STAGE}


def _reproduce(run: RunFiles) -> list[str]:
    parts = [
        html.heading("Reproduce"),
        html.paragraph("This page is made from the run's saved files alone; all random draws in it have fixed seeds."),
        f"<pre>{html.escape(tensorboard_command(run.run_dir))}</pre>",
    ]
    if run.config is not None:
        parts.append(html.folded("Configuration", run.config))
    return parts


def _picture(figure: Figure, description: str, caption: str) -> str:
    """A figure at its size in inches, 96 pixels each."""
    return html.figure(figures.png_data_uri(figure), description, caption, round(figure.get_figwidth() * 96))


def _interval(interval: Interval | None) -> str:
    return "undefined" if interval is None else str(interval)
