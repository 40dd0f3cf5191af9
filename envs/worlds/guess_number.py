"""Guessing a number: the prompt tells the range, each guess is answered with "higher" or "lower".

A turn is a number in digits, and the answer is one character, or whatever is given for it::

    40-49:   45 EOS  >   47 EOS  <   46 EOS  =
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from worldmtp.envs.worlds.players import Player

HIGHER, LOWER, HIT, MALFORMED = ">", "<", "=", "?"
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


def optimal_turns(size: int) -> int:
    """Guesses that the best player needs at worst among ``size`` numbers: floor(log2(size)) + 1.

    With n guesses that are answered in three ways, 2**n - 1 numbers can be told apart, and bisection does it.

    Raises:
        ValueError: if there is no number to guess.
    """
    if size < 1:
        raise ValueError(f"size={size} must be at least 1.")
    return size.bit_length()


class GuessNumber:
    """One hidden number of a range; ">": it is higher, "<": lower, "=": hit, "?": no number of the range, a turn lost.

    It is uniform in the range, whose place and size are drawn too.
    Who hits it in turn n, where bisection needs w = ``optimal_turns(size)`` at worst, earns

        1 if n <= w,    (2 w + 1 - n) / (w + 1) if w < n <= 2 w,

    so the optimal return is exactly 1 in every episode, and luck earns no more. After 2 w turns the game is lost.
    What is no number of the range takes a turn as well.

    Args:
        max_number: the largest number of any range; ranges begin at 0 or above.
        min_size: numbers of the smallest range.
        max_size: numbers of the largest range; sizes are uniform.
        replies: what is said to a guess: that the number is higher, lower, hit, and that the guess is malformed.

    Raises:
        ValueError: if the sizes do not order, do not fit below ``max_number``, or there are not four replies.
    """

    def __init__(
        self,
        max_number: int = 99,
        min_size: int = 4,
        max_size: int = 15,
        replies: Sequence[str] = (HIGHER, LOWER, HIT, MALFORMED),
    ) -> None:
        if not 2 <= min_size <= max_size <= max_number + 1 or max_number >= 10**9:
            raise ValueError(
                f"expected 2 <= min_size <= max_size <= max_number + 1 <= 10**9, got {min_size}, {max_size}, "
                f"max_number={max_number}."
            )
        if isinstance(replies, str) or len(replies) != 4 or len(set(replies)) != 4:
            raise ValueError(f"replies={replies!r} must be four different texts: higher, lower, hit and malformed.")
        self.max_number, self.min_size, self.max_size = max_number, min_size, max_size
        self._higher, self._lower, self._hit, self._malformed = replies
        self.low = self.high = self.number = self.turn = 0

    @property
    def optimal_turns(self) -> int:
        """Guesses that bisection needs at worst in this episode's range."""
        return optimal_turns(self.high - self.low + 1)

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        """A new range and number; the range is the prompt, and the number what it hides."""
        rng = np.random.default_rng(seed)
        size = int(rng.integers(self.min_size, self.max_size + 1))
        self.low = int(rng.integers(self.max_number - size + 2))
        self.high = self.low + size - 1
        self.number = int(rng.integers(self.low, self.high + 1))
        self.turn = 0
        return f"{self.low}-{self.high}:", {"hidden": str(self.number), "optimal_value": 1.0}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """The answer to a guess. The last possible guess ends the game, hit or not."""
        self.turn += 1
        guess = text.strip()
        best = self.optimal_turns
        is_last = self.turn >= 2 * best
        if _NUMBER.fullmatch(guess) is None or not self.low <= int(guess) <= self.high:
            return self._malformed, 0.0, is_last, False, {"is_success": False, "reason": "malformed"}
        number = int(guess)
        if number == self.number:
            value = 1.0 if self.turn <= best else (2 * best + 1 - self.turn) / (best + 1)
            return self._hit, value, True, False, {"is_success": True}
        reply = self._higher if number < self.number else self._lower
        return reply, 0.0, is_last, False, {"is_success": False}

    def moves(self) -> Sequence[str]:
        """The numbers of the range."""
        return [str(number) for number in range(self.low, self.high + 1)]

    def player(self) -> Player:
        """Bisection."""
        low, high, guess = 0, 0, -1

        def say(reply: str) -> str:
            nonlocal low, high, guess
            if guess < 0:
                low, high = (int(bound) for bound in reply.rstrip(":").split("-"))
            else:
                low, high = (guess + 1, high) if reply == self._higher else (low, guess - 1)
            guess = (low + high) // 2
            return str(guess)

        return say
