"""What is wrong with a model of replies: each number is made for one fault, by a rule that needs no truth.

    misaligned   the reply of a neighbouring turn is foretold better than the turn's own: it is off by a turn
    ignorant     no reply is foretold better than that of some other turn: it has lost which turn it answers
                 (by .05 nats at most, surely; where few conversations leave that open, so is what is below)
    member       one member foretells answers that none has seen worse than the others: it is stale
    surprise     answers cost more than the model's own entropy: it is surer than it may be (less: not sure enough)

    surprise = E[-log M(y)] - H(M),  0 for a right model, whatever chance the world has

A model that is sure of the wrong turn is surprised as well, so that they are read in this order (``fault_of``).
``tests/analysis/test_reply_faults.py`` plants each. Errors are cut at 9.2 nats: an answer that was held impossible
counts as one in ten thousand, or a few would decide.

The open loop asks something else: what it costs that imagined replies follow imagined ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from worldmtp.analysis.reply_consistency import OfTurns, group_interval
from worldmtp.analysis.reply_turns import ReplyTurns
from worldmtp.analysis.verdict import MAX_ERROR
from worldmtp.statistics import Interval

_LEAST = 1e-4
"""Probability that the least probable answer counts as."""
_BY_DEPTH = ("member_cost", "nats_of_turn", "open_loop_of_turn")


@dataclass(frozen=True)
class ReplyFaults:
    """Nats an answer with intervals; None where fewer than two conversations say anything.

    ``before`` and ``after`` are what the neighbouring turn's reply costs less than the turn's own, and ``knows`` what
    another turn's costs more than the best of the three. ``members`` is what each costs more than the others' mean, on
    held-out episodes.
    """

    before: Interval | None
    after: Interval | None
    knows: Interval | None
    members: tuple[Interval | None, ...]
    surprise: Interval | None
    misaligned: int

    @property
    def ignorant(self) -> bool:
        """Return whether the turn is surely worth next to nothing to it: 0 is possible, and above .05 nats is not."""
        return self.knows is not None and self.knows.low <= 0 and self.knows.high <= MAX_ERROR

    @property
    def stale(self) -> int | None:
        """Return the member that is behind by more than may be, surely; the worst of several, None where none is."""
        behind = [
            (interval.estimate, member)
            for member, interval in enumerate(self.members)
            if interval is not None and interval.low > MAX_ERROR
        ]
        return max(behind)[1] if behind else None


def nats(logprob: np.ndarray) -> np.ndarray:
    """Return -log of probabilities, cut where they are next to nothing."""
    return -np.log(np.exp(logprob) + _LEAST)


def reply_faults(found: ReplyTurns) -> ReplyFaults:
    """Return all of them."""
    probes = found.probes
    own, other = nats(probes.own), nats(probes.other)
    shifts = {0: own, -1: nats(probes.before), 1: nats(probes.after)}
    gains = {shift: _mean(found, own - shifts[shift]) for shift in (-1, 1)}
    skills = {shift: _mean(found, other - cost) for shift, cost in shifts.items()}
    better = {
        shift: gain.estimate
        for shift, gain in gains.items()
        if gain is not None and gain.low > 0 and (skill := skills[shift]) is not None and skill.low > 0
    }
    misaligned = max(better, key=lambda shift: better[shift], default=0)
    return ReplyFaults(
        before=gains[-1],
        after=gains[1],
        knows=skills[misaligned],
        members=_members(found),
        surprise=_mean(found, nats(found.newest.logprob) - found.entropy),
        misaligned=misaligned,
    )


def fault_of(faults: ReplyFaults) -> str:
    """Return the first fault in the order above that is surely there, empty where none is.

    "undetermined" is that nothing is sure before surprise, and conversations are too few to say that the turn is known:
    a surprise would not say what is wrong.
    """
    if faults.misaligned:
        return "misaligned"
    if faults.ignorant:
        return "ignorant"
    if faults.stale is not None:
        return "member"
    if faults.knows is not None and faults.knows.low <= 0:
        return "undetermined"
    if faults.surprise is not None and faults.surprise.low > MAX_ERROR:
        return "surprise"
    return ""


def open_loop_costs(found: ReplyTurns) -> Interval | None:
    """Return what a reply costs more after imagined replies than after real ones, from the second turn on, in nats.

    0 in a sure world of a model that knows it. Where there is chance, nobody knows what came before, and it is above 0.
    """
    growth = nats(found.probes.open_loop) - nats(found.probes.own)
    return _mean(found, np.where(np.arange(growth.shape[1]) > 0, growth, np.nan))


def loop_lines(found: ReplyTurns) -> dict[str, list[Interval | None]]:
    """Return what a reply costs by turn, after real replies and after imagined ones, at the same turns."""
    there = ~np.isnan(found.probes.open_loop)  # -inf: a reply that no path held possible
    lines = {"after real replies": found.probes.own, "after imagined ones": found.probes.open_loop}
    return {
        name: [
            group_interval(nats(values)[:, [turn]], there[:, [turn]], found.newest.group)
            for turn in range(there.shape[1])
        ]
        for name, values in lines.items()
    }


def _mean(found: ReplyTurns, values: OfTurns) -> Interval | None:
    return group_interval(values, np.isfinite(values), found.newest.group)


def _members(found: ReplyTurns) -> tuple[Interval | None, ...]:
    costs: Float[np.ndarray, "pair turn member"] = nats(found.members)
    number = costs.shape[2]
    others = (costs.sum(axis=2, keepdims=True) - costs) / (number - 1)
    behind = costs - others
    groups = found.heldout.group
    return tuple(group_interval(behind[..., one], found.heldout.there, groups) for one in range(number))


def fault_rows(found: ReplyTurns) -> Iterator[tuple[str, int | None, Interval]]:
    """Yield every number with its interval, as quantity and depth: a turn, or a member, from 1 on."""
    faults = reply_faults(found)
    lines = loop_lines(found)
    series: dict[str, Sequence[Interval | None]] = {
        "before_gain": [faults.before],
        "after_gain": [faults.after],
        "knows_turn": [faults.knows],
        "surprise": [faults.surprise],
        "open_loop": [open_loop_costs(found)],
        "member_cost": faults.members,
        "nats_of_turn": lines["after real replies"],
        "open_loop_of_turn": lines["after imagined ones"],
    }
    for name, intervals in series.items():
        for depth, one in enumerate(intervals, start=1):
            if one is not None:
                yield f"reply/{name}", depth if name in _BY_DEPTH else None, one


def fault_scalars(found: ReplyTurns) -> dict[str, float]:
    """Return what is logged of them, what is defined."""
    logged = ("surprise", "knows_turn", "open_loop")
    values = {name.removeprefix("reply/"): interval for name, _, interval in fault_rows(found)}
    return {f"world_model/reply_{name}": values[name].estimate for name in logged if name in values}
