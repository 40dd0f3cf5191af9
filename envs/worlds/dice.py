"""Pig against the clock: roll on and risk what has been rolled, or hold and bank it. A world of chance.

A turn is "r" (roll) or "h" (hold). A roll is answered with the die, a hold with the points banked so far::

    12/8:   r EOS  5   r EOS  4   h EOS  9   r EOS  1   h EOS  9 ...          what is neither:  ?

The transition law, with b points banked, t points at risk and k decisions left:

    roll:   die ~ uniform on 1..6;    die 1: t <- 0;    else t <- t + die;    k <- k - 1
    hold:   b <- b + t;  t <- 0;  k <- k - 1
    else:   k <- k - 1

The dice are decided by the seed, or by that of ``throw_dice``: the i-th roll shows the same in whatever turn it is
made.
The two-player game and its optimal play: Neller and Presser 2004, "Optimal Play of the Dice Game Pig", The UMAP Journal
25(1). Here a clock stands for the opponent, so that one player's optimal value is exact.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from worldmtp.envs.worlds.players import Player

ROLL, HOLD, MALFORMED = "r", "h", "?"
NUM_FACES = 6


def optimal_value(target: int, decisions: int) -> float:
    """The largest expected return, by dynamic programming over (b, t, k).

    V(b, t, k) = max(hold, roll) with V(b, t, 0) = 0, V(b >= target, 0, k) = 0 and

        hold = (min(b + t, target) - b) / target + V(b + t, 0, k - 1)
        roll = (V(b, 0, k - 1) + sum_{die = 2}^{6} V(b, t + die, k - 1)) / 6.
    """
    return _value(target, 0, 0, decisions)


def optimal_decision(target: int, banked: int, at_risk: int, decisions: int) -> str:
    """What the best player says: "r" or "h", and "h" where both are worth the same."""
    hold, roll = _choices(target, banked, at_risk, decisions)
    return HOLD if hold >= roll else ROLL


_LARGEST = 100


class Pig:
    """Bank ``target`` points within ``decisions`` turns; both are drawn and told in the prompt.

    A hold earns its share of the target, (min(b + t, target) - b) / target, so the return is min(b, target) / target
    in the end. The game is over when the target is banked or no decision is left.

    Args:
        min_target: the smallest target.
        max_target: the largest; targets are uniform.
        min_decisions: the fewest decisions.
        max_decisions: the most; their number is uniform and independent of the target.

    Raises:
        ValueError: if the bounds do not order or leave nothing to play.
    """

    def __init__(
        self, min_target: int = 8, max_target: int = 20, min_decisions: int = 4, max_decisions: int = 10
    ) -> None:
        if not (1 <= min_target <= max_target and 2 <= min_decisions <= max_decisions):
            raise ValueError(
                f"expected 1 <= min_target <= max_target and 2 <= min_decisions <= max_decisions (a roll and a hold), "
                f"got {min_target}, {max_target}, {min_decisions}, {max_decisions}."
            )
        if max(max_target, max_decisions) > _LARGEST:
            raise ValueError(
                f"max_target={max_target} and max_decisions={max_decisions} must be at most {_LARGEST}: the optimal "
                "value takes target**2 * decisions states."
            )
        self.min_target, self.max_target = min_target, max_target
        self.min_decisions, self.max_decisions = min_decisions, max_decisions
        self.target = self.banked = self.at_risk = self.decisions = 0
        self._paid = 0.0
        self._rng = np.random.default_rng(0)

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        """A new target and clock, which are the prompt; the dice are hidden behind the seed."""
        self._rng = np.random.default_rng(seed)
        self.target = int(self._rng.integers(self.min_target, self.max_target + 1))
        self.decisions = int(self._rng.integers(self.min_decisions, self.max_decisions + 1))
        self.banked, self.at_risk, self._paid = 0, 0, 0.0
        return f"{self.target}/{self.decisions}:", {"optimal_value": optimal_value(self.target, self.decisions)}

    @property
    def has_dice(self) -> bool:
        """Always."""
        return True

    def throw_dice(self, seed: int) -> None:
        """Let this seed decide the rolls from here on."""
        self._rng = np.random.default_rng(seed)

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """The die, or the points banked."""
        self.decisions -= 1
        decision, earned, reason = text.strip(), 0.0, "ok"
        if decision == ROLL:
            die = int(self._rng.integers(1, NUM_FACES + 1))
            self.at_risk = 0 if die == 1 else self.at_risk + die
            reply = str(die)
        elif decision == HOLD:
            self.banked, self.at_risk = min(self.banked + self.at_risk, self.target), 0
            earned = self.banked / self.target - self._paid  # what was paid is added up as callers do: to 1 exactly
            self._paid += earned
            reply = str(self.banked)
        else:
            reply, reason = MALFORMED, "malformed"
        is_won = self.banked >= self.target
        is_over = is_won or self.decisions <= 0
        return reply, earned, is_over, False, {"is_success": is_won, "reason": reason}

    def moves(self) -> Sequence[str]:
        """Roll and hold."""
        return (ROLL, HOLD)

    def player(self) -> Player:
        """The best player, by dynamic programming; it keeps the books that the replies leave to it."""
        target = decisions = banked = at_risk = 0
        said = ""

        def say(reply: str) -> str:
            nonlocal target, decisions, banked, at_risk, said
            if said == "":
                target, decisions = (int(number) for number in reply.rstrip(":").split("/"))
            elif said == HOLD:
                banked, at_risk = int(reply), 0
            else:
                at_risk = 0 if reply == "1" else at_risk + int(reply)
            said = optimal_decision(target, banked, at_risk, decisions)
            decisions -= 1
            return said

        return say


def _choices(target: int, banked: int, at_risk: int, decisions: int) -> tuple[float, float]:
    kept = min(banked + at_risk, target)
    hold = (kept - banked) / target + _value(target, kept, 0, decisions - 1)
    survived = sum(_value(target, banked, at_risk + die, decisions - 1) for die in range(2, NUM_FACES + 1))
    roll = (_value(target, banked, 0, decisions - 1) + survived) / NUM_FACES
    return hold, roll


@lru_cache(maxsize=2**20)
def _value(target: int, banked: int, at_risk: int, decisions: int) -> float:
    if decisions <= 0 or banked >= target:
        return 0.0
    if banked + at_risk > target:  # more at risk than is missing is worth no more
        return _value(target, banked, target - banked, decisions)
    return max(_choices(target, banked, at_risk, decisions))
