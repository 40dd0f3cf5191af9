"""Brackets: complete a word of balanced brackets. Every token is rewarded, and the first wrong one ends the text.

Words that balance brackets of several kinds are the Dyck languages; to close them takes a stack (Chomsky and
Schützenberger 1963, "The algebraic theory of context-free languages"). A prompt has many right answers: a text is right
exactly if it completes the word.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from worldmtp.envs.task import Example, Progress, Score
from worldmtp.envs.tasks.strings import check_reward

_MAX_PAIRS = 9  # the prompt gives the number as one digit


@dataclass(frozen=True)
class _Walk:
    """Where a text leads: how many of its characters are right, the closing brackets it owes, what ended it."""

    num_right: int
    owed: str
    reason: str


class Brackets:
    """Complete the word to the asked number of pairs: ``"4([=" -> "])()()"``, or ``"](())"`` and ``")"``, or others.

    A character is right as long as the word can still be completed with exactly that many pairs: a closing bracket must
    close the last one open, and an opening bracket must be among the pairs that are left.

    Args:
        kinds: pairs of brackets, such as ``"()[]"``.
        min_pairs: of a word, the prompt's brackets included.
        max_pairs: of a word, at most 9; the number is uniform.
        max_prefix: brackets that a prompt gives, at most; their number is uniform from 1 on.
        reward: "score" pays each right character its share as it is written, "exact" 1 or 0 at the end.
        separator: what ends the prompt.

    Raises:
        ValueError: if the kinds are no pairs of different characters, the numbers do not order, a prompt could be
            complete, or the reward is unknown.
    """

    probe_bound = 0.0

    def __init__(
        self,
        kinds: str = "()[]",
        min_pairs: int = 4,
        max_pairs: int = 8,
        max_prefix: int = 6,
        reward: str = "score",
        separator: str = "=",
    ) -> None:
        if not kinds or len(kinds) % 2 or len(set(kinds)) < len(kinds) or any(kind.isalnum() for kind in kinds):
            raise ValueError(f"kinds={kinds!r} must be pairs of different signs, opening then closing, such as '()[]'.")
        if not 1 <= min_pairs <= max_pairs <= _MAX_PAIRS:
            raise ValueError(f"expected 1 <= min_pairs <= max_pairs <= {_MAX_PAIRS}, got {min_pairs} and {max_pairs}.")
        if not 1 <= max_prefix < 2 * min_pairs:
            raise ValueError(
                f"max_prefix={max_prefix} must lie in 1..{2 * min_pairs - 1}: a word of min_pairs={min_pairs} would be "
                "complete before it is asked for."
            )
        check_reward(reward)
        self.min_pairs, self.max_pairs, self.max_prefix = min_pairs, max_pairs, max_prefix
        self.reward, self.separator = reward, separator
        self._closing = dict(zip(kinds[::2], kinds[1::2], strict=True))
        self.universe_size = sum(
            _num_prefixes(len(self._closing), pairs, length)
            for pairs in range(min_pairs, max_pairs + 1)
            for length in range(1, max_prefix + 1)
        )

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        """A number of pairs and the beginning of a word; the answer closes what is open, then adds the first kind."""
        num_pairs = int(rng.integers(self.min_pairs, self.max_pairs + 1))
        opening = "".join(self._closing)
        prefix, owed = "", ""
        for _ in range(int(rng.integers(1, self.max_prefix + 1))):
            num_open = (len(prefix) + len(owed)) // 2
            opens = num_open < num_pairs and (not owed or rng.random() < 0.5)
            bracket = opening[int(rng.integers(len(opening)))] if opens else owed[0]
            prefix, owed = prefix + bracket, self._closing[bracket] + owed if opens else owed[1:]
        missing = num_pairs - (len(prefix) + len(owed)) // 2
        answer = owed + (opening[0] + self._closing[opening[0]]) * missing
        return Example(prompt=f"{num_pairs}{prefix}{self.separator}", answer=answer)

    def progress(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Progress:
        """The share of the missing brackets that are right; ended by the first wrong one, or when none is missing."""
        num_needed, walk = self._follow(example, text)
        ended = walk.reason != "unfinished"
        if self.reward == "exact":
            return Progress(value=float(walk.reason == "ok"), ended=ended)
        # of the longer of the two, as everywhere: what follows a complete word is not free
        return Progress(value=walk.num_right / max(len(text), num_needed), ended=ended)

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """What ``progress`` says of the whole text.

        The reason tells what is wrong: "unfinished", "wrong_close", "too_many_open", "no_bracket" or "overlong".
        """
        num_needed, walk = self._follow(example, text)
        exact = walk.reason == "ok"
        components = {"right": walk.num_right / num_needed, "still_open": float(len(walk.owed))}
        value = self.progress(example, text, ids).value
        return Score(value=value, components=components, reason=walk.reason, exact=exact)

    def _start(self, example: Example) -> tuple[int, _Walk]:
        body = example.prompt.removesuffix(self.separator)
        num_pairs = int(body[:1]) if body[:1] in set("123456789") else 0
        walk = self._walk(body[1:], num_pairs, _Walk(0, "", "unfinished"))
        if not num_pairs or walk.reason != "unfinished":
            fault = "complete" if walk.reason == "ok" else walk.reason if num_pairs else "no number"
            raise ValueError(
                f"the prompt {example.prompt!r} is no number of pairs and the beginning of such a word: {fault}."
            )
        return num_pairs, walk

    def _follow(self, example: Example, text: str) -> tuple[int, _Walk]:
        """How many brackets are missing, and where the text leads."""
        num_pairs, start = self._start(example)
        walk = self._walk(text, num_pairs, start)
        return 2 * num_pairs - start.num_right, _Walk(walk.num_right - start.num_right, walk.owed, walk.reason)

    def _walk(self, text: str, num_pairs: int, start: _Walk) -> _Walk:
        num_right, owed = start.num_right, start.owed
        for character in text:
            fault = self._fault(character, num_pairs, num_right, owed)
            if fault is not None:
                return _Walk(num_right, owed, fault)
            owed = self._closing[character] + owed if character in self._closing else owed[1:]
            num_right += 1
        return _Walk(num_right, owed, "ok" if num_right == 2 * num_pairs else "unfinished")

    def _fault(self, character: str, num_pairs: int, num_right: int, owed: str) -> str | None:
        """What is wrong with the next character; None if the word can still be completed after it."""
        if num_right == 2 * num_pairs:
            return "overlong"
        if character in self._closing:
            return "too_many_open" if (num_right + len(owed)) // 2 == num_pairs else None
        if character in self._closing.values():
            return None if owed[:1] == character else "wrong_close"
        return "no_bracket"


def _num_prefixes(num_kinds: int, num_pairs: int, length: int) -> int:
    """Beginnings of this length of words with this many pairs."""
    by_height = {0: 1}
    for position in range(length):
        longer: dict[int, int] = {}
        for height, count in by_height.items():
            if (position + height) // 2 < num_pairs:
                longer[height + 1] = longer.get(height + 1, 0) + num_kinds * count
            if height:
                longer[height - 1] = longer.get(height - 1, 0) + count
        by_height = longer
    return sum(by_height.values())
