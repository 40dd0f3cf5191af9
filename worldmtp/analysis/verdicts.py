"""The verdicts that a report opens with: what the last evaluation says of the heads as a world model.

Each verdict has one number with its interval and a rule that was fixed beforehand: pass where the whole interval keeps
it, fail where the whole interval breaks it, undetermined where the interval has both, or nothing was measured. What is
resampled is the sequence, one a held-out prompt.
"""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from worldmtp.analysis import consistency, metrics
from worldmtp.analysis.artefacts import EvalArtefact
from worldmtp.analysis.metrics import RootedPredictions
from worldmtp.analysis.reply_verdicts import (
    reply_alignment,
    reply_calibration,
    reply_certificate_verdict,
    reply_coherence,
)
from worldmtp.analysis.return_agreement import known_roots, return_agreement
from worldmtp.analysis.run_files import STARTS, RunFiles, Series, logged_interval
from worldmtp.analysis.truth import Truth
from worldmtp.analysis.verdict import CONSISTENT, MAX_ERROR, Verdict, at_least, at_most, unmeasured
from worldmtp.statistics import paired_ratio_difference, ratio_interval

MAX_LOSS = 0.05
"""Acceptance that training may cost, and share of the returns' range that imagination may promise too much."""


_OF_REPLIES = (reply_coherence, reply_alignment, reply_calibration)


def verdicts(run: RunFiles, rooted: Mapping[str, RootedPredictions]) -> tuple[Verdict, ...]:
    """Return all verdicts of a run, by its last evaluation."""
    names = list(run.artefacts)
    if not names:
        return ()
    last = names[-1]
    is_taught = last not in untaught(run)
    return (
        adequacy(run.artefacts[last], rooted[last]),
        coherence(rooted[last]),
        *([one(run.reply_turns) for one in _OF_REPLIES] if run.reply_turns else []),
        split(run.metrics, rooted[last].valid.shape[2]),
        *([beside_truth(run.truths)] if run.truths else []),
        certificate(run.artefacts[last], rooted[last]) if is_taught else unmeasured("certificate", *_CERTIFICATE),
        *([reply_certificate_verdict(run.reply_turns)] if run.reply_turns else []),
        shift(rooted[names[0]], rooted[last]) if len(names) > 1 else unmeasured("shift", *_SHIFT),
        exploitation(run.artefacts[last]) if is_taught else unmeasured("exploitation", *_EXPLOITATION),
        Verdict(
            "mechanism",
            "undetermined",
            "-",
            "-",
            "Attention patterns, below, say where heads look, not what they are good for: that needs one that is "
            "ablated.",
        ),
    )


def untaught(run: RunFiles) -> frozenset[str]:
    """Return the evaluations at which nothing had taught the reward head, so that its returns mean nothing.

    Those before the first iteration, and of a run that has come to its end those that its summary gives no return of.
    """
    arms = run.summary.arms if run.summary is not None else ()
    return frozenset(STARTS) | {arm.artefact for arm in arms if arm.imagined_return is None}


def adequacy(artefact: EvalArtefact, rooted: RootedPredictions) -> Verdict:
    """Judge whether the deepest head knows more of its token than how frequent tokens are in these very texts.

    The frequencies are those of the policy's tokens of the same evaluation, which favours them.
    """
    depth = rooted.valid.shape[2]
    number, rule = f"frequencies' cross-entropy less that of depth {depth}, nats per token", "above 0"
    counts = np.bincount(artefact.input_ids[artefact.action_mask], minlength=len(artefact.tokens_text))
    surprise = -np.log(np.maximum(counts, 1) / max(1, counts.sum()))
    valid = rooted.valid[:, :, depth - 1]
    of_target = np.zeros(valid.shape)
    of_target[:, :-depth] = surprise[artefact.input_ids[:, depth:]]
    gain = np.where(valid, of_target - rooted.cross_entropy[:, :, depth - 1], 0.0)
    if (valid.any(axis=1)).sum() < 2:
        return unmeasured("adequacy", number, rule)
    interval = ratio_interval(gain.sum(axis=1), valid.sum(axis=1), generator=0, num_resamples=2000)
    accepted = metrics.acceptance(rooted)
    shares = [accepted.interval(k, generator=0) for k in range(2, depth + 1)]
    by_depth = ", ".join(f"d{k} {share}" for k, share in enumerate(shares, start=2) if share is not None)
    sentence = f"Acceptance by depth: {by_depth}." if by_depth else "There is no depth beyond the trunk's own."
    return Verdict("adequacy", at_least(interval, math.ulp(0.0)), number, rule, sentence, interval)


def coherence(rooted: RootedPredictions) -> Verdict:
    """Judge whether heads and trunk mean one law of the next tokens, by 1 - total variation of their paths."""
    depth = rooted.valid.shape[2]
    number, rule = f"consistency of {depth}-token paths", f"at least {CONSISTENT}"
    interval = metrics.path_consistency(rooted).interval(depth, generator=0)
    if interval is None:
        return unmeasured("coherence", number, rule)
    sentence = f"Heads and trunk disagree about {1 - interval.estimate:.0%} of what {depth} tokens may become."
    return Verdict("coherence", at_least(interval, CONSISTENT), number, rule, sentence, interval)


def split(logged: Mapping[str, Series], num_depths: int) -> Verdict:
    """Judge the error of the deepest head whose loss the run has split into noise, structural gap and error."""
    rule = f"at most {MAX_ERROR} nats"
    for depth in range(num_depths, 1, -1):
        interval = logged_interval(logged, f"world_model/depth_{depth}/error")
        if interval is None:
            continue
        outcome = at_most(interval, MAX_ERROR)
        sentence = (
            "One place of each of up to 128 answers. Below 0 the head is told the tokens in between, and uses them."
        )
        return Verdict("split", outcome, f"error of depth {depth}, nats per token", rule, sentence, interval)
    return unmeasured("split", "error of the deepest head, nats per token", rule)


_TRUTH = ("error of the deepest head beside the known law, nats per token", f"at most {MAX_ERROR} nats")


def beside_truth(truths: Mapping[str, Truth]) -> Verdict:
    """Judge the deepest head by the law of its texts, at the first evaluation: learning by reward may leave the law."""
    name, first = next(iter(truths.items()))
    interval = first.interval("error", first.num_depths)
    last = list(truths.values())[-1].interval("error", first.num_depths)
    share = first.belief_r2(0)
    kind = "told the tokens in between" if first.told else "that average over the tokens in between"
    sentence = (
        f"At {name}, beyond the least that heads {kind} can lose"
        + (f"; {last} at the end" if len(truths) > 1 else "")
        + (f". Of the beliefs the trunk's states show {share}." if share is not None else ".")
    )
    return Verdict("truth", at_most(interval, MAX_ERROR), *_TRUTH, sentence, interval)


_CERTIFICATE = ("what |imagined - realized return| leaves of range (1 - consistency)", "not below 0")


def certificate(artefact: EvalArtefact, rooted: RootedPredictions) -> Verdict:
    """Judge whether imagined returns are off by more than heads that mean another law of the tokens can explain."""
    # Each root's whole window, as far as its text goes: a shorter path keeps no less.
    depth_of_root = np.maximum(rooted.valid.sum(axis=2) - 1, 0)[..., None]
    kept = np.take_along_axis(metrics.kept_path_probability(rooted), depth_of_root, axis=2)[..., 0]
    there = rooted.valid.any(axis=2) & known_roots(artefact)
    if there.any(axis=1).sum() < 2:
        return unmeasured("certificate", *_CERTIFICATE)
    imagined, realized, kept = (
        np.where(there, values, np.nan).astype(np.float64)
        for values in (artefact.imagined_return, artefact.realized_return, kept)
    )
    # Imagined returns are in the range: a wrong token may lead to what no text here was paid.
    span = _span(np.concatenate([artefact.realized_return[there], artefact.imagined_return[there]]))
    found = consistency.certificate(imagined, realized, kept, span, generator=0)
    outcome = {"holds": "pass", "violated": "fail"}.get(found.verdict, found.verdict)
    sentence = (
        f"Imagined less realized {found.difference}, bound {found.bound}. Strict for rewards of the heads' own tokens; "
        "beyond them a value stands, so a failure is of the reward or the value head."
    )
    return Verdict("certificate", outcome, *_CERTIFICATE, sentence, found.slack)


_SHIFT = ("acceptance of the deepest head, last less first evaluation", f"lost less than {MAX_LOSS}")


def shift(first: RootedPredictions, last: RootedPredictions) -> Verdict:
    """Judge whether the heads kept up with the policy: prompts are the same at each evaluation, so they are paired."""
    before, after = (metrics.acceptance(rooted) for rooted in (first, last))
    if before.total.shape != after.total.shape:
        return unmeasured("shift", *_SHIFT)
    old, new = ((sums.total[:, -1], sums.count[:, -1]) for sums in (before, after))
    if min((old[1] > 0).sum(), (new[1] > 0).sum()) < 2:
        return unmeasured("shift", *_SHIFT)
    interval = paired_ratio_difference(new, old, generator=0, num_resamples=2000)
    sentence = "Acceptance also falls where the policy became less sure; the strata by entropy tell the two apart."
    return Verdict("shift", at_least(interval, -MAX_LOSS), *_SHIFT, sentence, interval)


_EXPLOITATION = (
    "imagined less realized return",
    f"at most {MAX_LOSS} of the returns' range, or of 1 where that is less",
)


def exploitation(artefact: EvalArtefact) -> Verdict:
    """Judge whether imagination promises the policy more than it gets."""
    interval = return_agreement(artefact, generator=0).bias
    if interval is None:
        return unmeasured("exploitation", *_EXPLOITATION)
    outcome = at_most(interval, MAX_LOSS * _span(artefact.realized_return[np.isfinite(artefact.realized_return)]))
    neither = "neither surely too much nor surely too little"
    way = "too much" if interval.low > 0 else "too little" if interval.high < 0 else neither
    return Verdict("exploitation", outcome, *_EXPLOITATION, f"Imagination promises {way}.", interval)


def _span(returns: Float[np.ndarray, " root"]) -> float:
    """Return the range of these returns, at least 1: where all are alike, it is not known."""
    return max(1.0, float(np.ptp(returns)))
