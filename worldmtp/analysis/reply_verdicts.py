"""Verdicts on the model of replies, beside those on the policy's own tokens; see ``verdicts`` for the rules."""

import math

from worldmtp.analysis.reply_consistency import has_chance, reply_certificate, reply_intervals, return_range
from worldmtp.analysis.reply_faults import reply_faults
from worldmtp.analysis.reply_turns import ReplyTurns
from worldmtp.analysis.verdict import CONSISTENT, MAX_ERROR, Verdict, at_least, at_most, unmeasured

_COHERENCE = (
    "coherence of replies",
    "consistency of whole conversations, the policy's turns given",
    f"at least {CONSISTENT}",
)
_CERTIFICATE = (
    "certificate of replies",
    "what |imagined - real return| of whole conversations leaves of range (1 - consistency)",
    "not below 0",
)
_ALIGNMENT = (
    "alignment of replies",
    "what another turn's reply costs more than the turn's own, nats",
    f"above 0, no neighbouring turn's is better, and no member costs {MAX_ERROR} nats more than the others",
)
_NEIGHBOUR = {-1: "before", 1: "after"}
_CALIBRATION = (
    "calibration of replies",
    "cost of an answer less the entropy of its prediction, nats",
    f"within {MAX_ERROR} of 0",
)
_LITTLE = 0.5
"""Share of the range above which a bound says next to nothing."""


def reply_coherence(found: ReplyTurns) -> Verdict:
    """Judge whether the model of replies and the world mean one law of conversations.

    Where the world has chance the number is a lower bound, so that it can pass and not fail.
    """
    numbers = reply_intervals(found)
    if "wci" not in numbers:
        return unmeasured(*_COHERENCE)
    topic, number, rule = _COHERENCE
    outcome, chance = at_least(numbers["wci"], CONSISTENT), has_chance(found.newest)
    if outcome == "fail" and chance is not False:
        outcome = "undetermined"
    known = {
        False: "The world was never seen to answer one text in two ways, so that this is exact.",
        True: "The world has answered one text in two ways: a lower bound, which can pass and not fail.",
        None: "No text was asked twice; should the world have chance, this is a lower bound, so that it cannot fail.",
    }[chance]
    sentence = (
        f"{numbers['h_eff'].estimate:.1f} of {numbers['turns'].estimate:.1f} answers are kept before the first that "
        f"differs; a single one differs by {numbers['tv'].estimate:.1%}. {known}"
    )
    return Verdict(topic, outcome, number, rule, sentence, numbers["wci"])


def reply_alignment(found: ReplyTurns) -> Verdict:
    """Judge whether replies are foretold at their turn, by members that all keep up."""
    faults = reply_faults(found)
    if faults.knows is None:
        return unmeasured(*_ALIGNMENT)
    topic, number, rule = _ALIGNMENT
    outcome = at_least(faults.knows, math.ulp(0.0))
    sentence = "Neighbouring turns' replies are not foretold better, and no member is behind the others."
    if faults.misaligned:
        outcome, sentence = "fail", f"The reply of the turn {_NEIGHBOUR[faults.misaligned]} is foretold better."
    elif faults.ignorant:
        outcome, sentence = (
            "fail",
            f"Another turn's reply costs no more, or at most {MAX_ERROR} nats: the turn is lost.",
        )
    elif faults.stale is not None:
        outcome, sentence = (
            "fail",
            f"Member {faults.stale} is behind the others by {faults.members[faults.stale]} nats.",
        )
    return Verdict(topic, outcome, number, rule, sentence, faults.knows)


def reply_calibration(found: ReplyTurns) -> Verdict:
    """Judge whether the model of replies is as sure as it may be: its answers cost what it expects them to."""
    interval = reply_faults(found).surprise
    if interval is None:
        return unmeasured(*_CALIBRATION)
    topic, number, rule = _CALIBRATION
    ends = {at_most(interval, MAX_ERROR), at_least(interval, -MAX_ERROR)}
    outcome = "fail" if "fail" in ends else "undetermined" if "undetermined" in ends else "pass"
    way = {True: "It is surer than it may be.", False: "It is less sure than it may be."}[interval.estimate > 0]
    sentence = way if outcome == "fail" else "Above 0 it is surer than it may be, below less sure."
    return Verdict(topic, outcome, number, rule, sentence, interval)


def reply_certificate_verdict(found: ReplyTurns) -> Verdict:
    """Judge whether whole imagined conversations pay what the real ones do, as far as their words are the same."""
    certificate = reply_certificate(found)
    if certificate is None:
        return unmeasured(*_CERTIFICATE)
    topic, number, rule = _CERTIFICATE
    outcome = {"holds": "pass", "violated": "fail"}.get(certificate.verdict, certificate.verdict)
    share = certificate.bound.estimate / return_range(found)
    sentence = (
        f"Imagined less real {certificate.difference}, bound {certificate.bound}: {share:.0%} of the returns' range"
        f"{', which certifies little' if share > _LITTLE else ''}. The policy is the same in both, so that a failure "
        "is of the rewards that are imagined: no error of the replies explains it."
    )
    return Verdict(topic, outcome, number, rule, sentence, certificate.slack)
