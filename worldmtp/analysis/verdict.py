"""One verdict of a report, and the two rules by which an interval decides one."""

import math
from dataclasses import dataclass

from worldmtp.statistics import Interval

CONSISTENT = 0.9
"""Least share of the paths' probability on which two laws must agree to be called one."""
MAX_ERROR = 0.05
"""Nats per token of a head's own error, and per answer of a model of replies."""


@dataclass(frozen=True)
class Verdict:
    """One line of the table; ``interval`` is of ``number``, None where nothing was measured; its n is 0 if unknown."""

    topic: str
    outcome: str
    number: str
    rule: str
    sentence: str
    interval: Interval | None = None


def unmeasured(topic: str, number: str, rule: str) -> Verdict:
    """Return the verdict on what a run has no numbers for."""
    return Verdict(topic, "undetermined", number, rule, "Not measured in this run.")


def at_most(interval: Interval, most: float) -> str:
    """Return the outcome of the rule that a number is at most this."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return "undetermined"
    return "pass" if interval.high <= most else "fail" if interval.low > most else "undetermined"


def at_least(interval: Interval, least: float) -> str:
    """Return the outcome of the rule that a number is at least this."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return "undetermined"
    return "pass" if interval.low >= least else "fail" if interval.high < least else "undetermined"
