"""The verdict table of a report: may the heads of a run be believed, by which number, and what would change it.

A verdict is pass, fail, or undetermined where the interval holds both; "not measured" says why there is no number.
Tolerances are stated in the table, not tuned: 0.05 nats, and 0 for what a sign decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from worldmtp.analysis.artefacts import EvalArtefact
from worldmtp.analysis.consistency import certificate, revision
from worldmtp.analysis.metrics import kept_path_probability, rooted_predictions
from worldmtp.analysis.return_agreement import known_roots, return_agreement
from worldmtp.analysis.run_files import Series
from worldmtp.statistics import Interval

TOLERANCE_NATS = 0.05
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Verdict:
    """One row: the question, the number with its interval, how it turned out, and a sentence."""

    question: str
    number: str
    outcome: str
    sentence: str

    def cells(self) -> list[str]:
        """Return the cells of a table."""
        return [self.question, self.number, self.outcome, self.sentence]


def verdicts(artefact: EvalArtefact, logged: Mapping[str, Series]) -> list[Verdict]:
    """Return the verdicts on a run's last evaluation: its artefact, and the last values of what was logged."""
    return [_adequacy(artefact, logged), _coherence(artefact), _certificate(artefact), _exploitation(artefact)]


def decide(low: float, high: float, limit: float) -> str:
    """Return ``pass`` if the whole interval is at most ``limit``, ``fail`` if above it, else ``undetermined``."""
    if high <= limit:
        return "pass"
    return "fail" if low > limit else "undetermined"


def _adequacy(artefact: EvalArtefact, logged: Mapping[str, Series]) -> Verdict:
    question = "Adequacy: does the last head err beyond what no head of averages can know?"
    for depth in range(artefact.num_depths, 1, -1):
        names = [f"world_model/depth_{depth}/error{end}" for end in ("", "_lo90", "_hi90")]
        if not all(name in logged and len(logged[name]) for name in names):
            continue
        middle, low, high = (float(logged[name].values[-1]) for name in names)
        return Verdict(
            question,
            f"depth {depth}: {middle:.3f} [{low:.3f}, {high:.3f}] nats",
            decide(low, high, TOLERANCE_NATS),
            f"At most {TOLERANCE_NATS} nats pass. Below 0 the head is told the tokens in between, and uses them.",
        )
    return Verdict(question, "", NOT_MEASURED, "No depth beyond 1 was reached by two answers, or actions are masked.")


def _coherence(artefact: EvalArtefact) -> Verdict:
    question = "Coherence: does one more token ever make the heads worse?"
    found = revision(rooted_predictions(artefact))
    known = [found.interval(depth, generator=0) for depth in range(2, artefact.num_depths + 1)]
    intervals = [(depth, interval) for depth, interval in enumerate(known, start=2) if interval is not None]
    if not intervals:
        return Verdict(question, "", NOT_MEASURED, "No two answers have consecutive prefixes that depth 2 reaches.")
    depth, worst = min(intervals, key=lambda entry: entry[1].estimate)
    return Verdict(
        question,
        f"depth {depth}: {worst} nats, {worst.n} {worst.unit}s",
        decide(-worst.high, -worst.low, TOLERANCE_NATS),
        f"The depth of least revision; not below -{TOLERANCE_NATS} nats passes. A coherent world gains.",
    )


def _certificate(artefact: EvalArtefact) -> Verdict:
    question = "Certificate: is imagined return off by more than the tokens explain?"
    rooted = rooted_predictions(artefact)
    reached = rooted.valid.any(axis=2)
    # Each root's whole window, as far as its text goes: a shorter path keeps no less.
    depth_of_root = np.maximum(rooted.valid.sum(axis=2) - 1, 0)[..., None]
    kept = np.take_along_axis(kept_path_probability(rooted), depth_of_root, axis=2)[..., 0]
    there = reached & known_roots(artefact)
    if there.any(axis=1).sum() < 2:
        return Verdict(question, "", NOT_MEASURED, "Nothing was imagined from two answers.")
    imagined, realized = (
        np.where(there, values, np.nan).astype(np.float64)
        for values in (artefact.imagined_return, artefact.realized_return)
    )
    span = max(1.0, float(np.ptp(artefact.realized_return[there])))
    found = certificate(imagined, realized, np.where(there, kept, np.nan), span, generator=0)
    outcome = {"holds": "pass", "violated": "fail"}.get(found.verdict, found.verdict)
    return Verdict(
        question,
        f"|{found.difference}| against {found.bound}, {found.slack.n} {found.slack.unit}s",
        outcome,
        "Strict for rewards of the heads' own tokens; what lies beyond them is the value's, so that a failure says "
        "that reward or value head is wrong, whichever.",
    )


def _exploitation(artefact: EvalArtefact) -> Verdict:
    question = "Exploitation: is what is imagined better than what comes?"
    found: Interval | None = return_agreement(artefact, generator=0).bias
    if found is None:
        return Verdict(question, "", NOT_MEASURED, "Nothing was imagined.")
    return Verdict(
        question,
        f"{found}, {found.n} {found.unit}s",
        decide(found.low, found.high, 0.0),
        "Imagined less realized return at the same prefixes; above 0 is optimism, which a policy learns to seek.",
    )
