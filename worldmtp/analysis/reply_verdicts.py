"""Verdicts on the model of replies, beside those on the policy's own tokens; see ``verdicts`` for the rules."""

from worldmtp.analysis.reply_consistency import has_chance, reply_certificate, reply_intervals, return_range
from worldmtp.analysis.reply_turns import ReplyTurns
from worldmtp.analysis.verdict import CONSISTENT, Verdict, at_least, unmeasured

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
        f"Of a single answer {1 - numbers['tv'].estimate:.0%}; {numbers['h_eff'].estimate:.1f} of "
        f"{numbers['turns'].estimate:.1f} answers are kept before the first that differs. {known}"
    )
    return Verdict(topic, outcome, number, rule, sentence, numbers["wci"])


def reply_certificate_verdict(found: ReplyTurns) -> Verdict:
    """Judge whether whole imagined conversations pay what the real ones do, as far as their words are the same."""
    certificate = reply_certificate(found)
    if certificate is None:
        return unmeasured(*_CERTIFICATE)
    topic, number, rule = _CERTIFICATE
    outcome = {"holds": "pass", "violated": "fail"}.get(certificate.verdict, certificate.verdict)
    share = certificate.bound.estimate / return_range(found.real_returns)
    sentence = (
        f"Imagined less real {certificate.difference}, bound {certificate.bound}: {share:.0%} of the returns' range"
        f"{', which certifies little' if share > _LITTLE else ''}. The policy is the same in both, so that a failure "
        "is of the rewards that are imagined: no error of the replies explains it."
    )
    return Verdict(topic, outcome, number, rule, sentence, certificate.slack)
