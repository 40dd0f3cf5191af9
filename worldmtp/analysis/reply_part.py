"""The report's part on the model of replies: what it fills into the page, but for its figure."""

from typing import Any

from worldmtp.analysis.replies import ReplyArtefact
from worldmtp.analysis.reply_calibration import calibration_intervals
from worldmtp.analysis.reply_consistency import has_chance, reply_certificate, reply_intervals, return_range
from worldmtp.analysis.reply_faults import fault_of, open_loop_costs, reply_faults
from worldmtp.analysis.reply_turns import ReplyTurns
from worldmtp.statistics import Interval

_COLUMNS = ("tv", "kl", "survival", "wci", "h_eff", "h_eff_tokens")
_CALIBRATION = {
    "token_overconfidence": ("tokens: stated probability less how often right", "0"),
    "token_ece": ("tokens: expected calibration error", "0, by chance above"),
    "end_overconfidence": ("ends: stated probability less how often so", "0"),
    "end_ece": ("ends: expected calibration error", "0, by chance above"),
    "reward_bias": ("rewards of a turn: foretold less real", "0"),
    "reward_error": ("rewards of a turn: root mean squared error", "what nobody can foretell"),
}


def reply_part(found: ReplyTurns, replies: ReplyArtefact | None) -> dict[str, Any]:
    """Return numbers and words; calibration is left out where the replies' tokens are not there."""
    numbers, certificate = reply_intervals(found), reply_certificate(found)
    return {
        "row": [str(numbers.get(name, "undefined")) for name in _COLUMNS],
        "num_conversations": len(found.newest.group),
        "num_turns": int(found.newest.there.sum()),
        "mean_turns": f"{found.newest.there.sum(axis=1).mean():.1f}",
        "chance": has_chance(found.newest),
        "checks": _checks(found, replies),
        "fault": fault_of(reply_faults(found)),
        "certificate": None
        if certificate is None
        else [str(part) for part in (certificate.difference, certificate.bound, certificate.slack)],
        "range": f"{return_range(found):.3g}",
        "num_pairs": len(found.real_returns),
        "num_unimaginable": int((~found.imaginable).sum()),
    }


def _checks(found: ReplyTurns, replies: ReplyArtefact | None) -> list[list[str]]:
    """Return a row for each number that exists for one fault: name, interval, what it is of a right model."""
    faults = reply_faults(found)
    rows: list[tuple[str, Interval | None, str]] = [
        ("another turn's reply costs more by", faults.knows, "above 0"),
        ("the reply of the turn before costs less by", faults.before, "not above 0"),
        ("the reply of the turn after costs less by", faults.after, "not above 0"),
        *((f"member {number} costs more by", one, "0") for number, one in enumerate(faults.members)),
        ("an answer costs more than expected by", faults.surprise, "0"),
        ("after imagined replies a reply costs more by", open_loop_costs(found), "0 where the world is sure"),
    ]
    calibrated = {} if replies is None else calibration_intervals(replies, found.newest.group)
    rows += [(title, calibrated.get(name), right) for name, (title, right) in _CALIBRATION.items()]
    return [[title, str(interval), right] for title, interval, right in rows if interval is not None]
