"""Switches in a hidden order: pressed in it all stay on, and one that is pressed too early puts them all out.

A turn is the letter of a switch. The reply is how many are on::

    0   b EOS  0   a EOS  1   b EOS  0   a EOS  1   c EOS  2 ...  4         what is no switch:  ?

Nothing tells the order but what was tried before: who remembers no reply is as good as chance.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from worldmtp.envs.worlds.players import Player

SWITCHES = "abcdefgh"
MALFORMED = "?"


def expected_turns(num_switches: int) -> float:
    """Turns that the best player needs on average, where each order is as likely as any other.

    With p switches on, n - p may be the next and only pressing one of them tells. Any of them is as good, so that j of
    them are tried in vain with probability 1 / (n - p), j = 0 .. n - p - 1, the last being known without a trial; each
    costs a turn and p more to come back. With n turns to press them all

        E = n + sum_{p < n} (1 + p) (n - p - 1) / 2.
    """
    in_vain = ((1 + on) * (num_switches - on - 1) / 2 for on in range(num_switches))
    return num_switches + sum(in_vain)


class Switches:
    """Who has all switches on after n of ``max_turns`` turns earns 1 - n / (2 max_turns), and nobody else anything.

    After ``max_turns`` turns the episode is truncated; what is no switch takes a turn as well. Seeds tell episodes
    apart, whose openings are all the same.

    Args:
        num_switches: letters from "a" on.
        max_turns: turns of an episode.
        order: the same in every episode, a world without a secret of its own; None draws one for each.

    Raises:
        ValueError: there are no such switches, ``order`` is not one of them, or the best player may come too late.
    """

    def __init__(self, num_switches: int = 4, max_turns: int = 20, order: str | None = None) -> None:
        if not 2 <= num_switches <= len(SWITCHES):
            raise ValueError(f"num_switches={num_switches} must be 2 to {len(SWITCHES)}.")
        self.letters = SWITCHES[:num_switches]
        if order is not None and sorted(order) != list(self.letters):
            raise ValueError(f"order={order!r} must have each of {', '.join(self.letters)} once, or be None.")
        # As expected_turns, at worst: of n - p all but one are tried in vain.
        longest = num_switches + sum((1 + on) * (num_switches - on - 1) for on in range(num_switches))
        if max_turns < longest:
            raise ValueError(f"max_turns={max_turns} must be at least {longest}, what the best player may need.")
        self.max_turns, self._fixed = max_turns, order
        self.order = order or self.letters
        self.turn = self.num_on = 0

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        """All are off. What is worth the most is a mean over orders: no player knows the episode's own."""
        self.turn = self.num_on = 0
        if self._fixed is not None:
            return "0", {"optimal_value": self.worth(len(self.letters))}
        self.order = "".join(np.random.default_rng(seed).permutation(list(self.letters)))
        return "0", {"optimal_value": self.worth(expected_turns(len(self.letters)))}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """How many are on."""
        self.turn += 1
        is_last = self.turn >= self.max_turns
        letter = text.strip()
        if len(letter) != 1 or letter not in self.letters:
            return MALFORMED, 0.0, False, is_last, {"is_success": False, "reason": "malformed"}
        self.num_on = self.num_on + 1 if letter == self.order[self.num_on] else 0
        if self.num_on == len(self.letters):
            return str(self.num_on), self.worth(self.turn), True, False, {"is_success": True}
        return str(self.num_on), 0.0, False, is_last, {"is_success": False}

    def moves(self) -> Sequence[str]:
        """All letters."""
        return tuple(self.letters)

    def worth(self, turns: int | float) -> float:
        """What all switches on after so many turns earn."""
        return 1.0 - 0.5 * turns / self.max_turns

    def player(self) -> Player:
        """Who comes back by what is known, and then presses the first letter that may be next.

        A fixed order is known beforehand, as a policy knows it that has learnt it.
        """
        known, in_vain = list(self._fixed or ""), set[str]()
        num_on, said = 0, ""

        def say(reply: str) -> str:
            nonlocal num_on, said
            if said and num_on == len(known):  # it was a trial
                if int(reply) > num_on:
                    known.append(said)
                    in_vain.clear()
                else:
                    in_vain.add(said)
            num_on = int(reply)
            untried = (letter for letter in self.letters if letter not in known and letter not in in_vain)
            said = known[num_on] if num_on < len(known) else next(untried)
            return said

        return say
