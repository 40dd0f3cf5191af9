"""Answers that are strings: Copy and Reverse, which the prompt determines, RandomDigits, which nothing does.

What heads predict can be right every time on the first two (upper anchors), and must stay at chance on the last: no
policy and no head can know the answer, so it is a negative control for whatever measures foresight.
"""

from typing import Literal

import numpy as np
from jaxtyping import Int64

from worldmtp.choices import check_choice
from worldmtp.envs.task import Example, Score

Reward = Literal["score", "exact"]
REWARDS = ("score", "exact")
"""Partial credit, or 1 and 0."""


def check_reward(reward: str) -> None:
    """Raise ValueError unless the reward is "score" or "exact"."""
    check_choice("reward", reward, REWARDS)


def position_match(answer: str, text: str) -> float:
    """Return the share of right characters, of the longer of the two: padding an answer is never free."""
    length = max(len(answer), len(text))
    return sum(a == b for a, b in zip(answer, text, strict=False)) / length if length else 1.0


def match_score(answer: str, text: str, reward: str) -> Score:
    """Return the score of a text against the only right answer; its credit is partial or all-or-nothing."""
    match = position_match(answer, text)
    exact = text == answer
    return Score(value=match if reward == "score" else float(exact), components={"position_match": match}, exact=exact)


class Copy:
    """Repeat the word before the separator: ``"abc=" -> "abc"``.

    Args:
        alphabet: characters of the words.
        min_length: of a word.
        max_length: of a word; lengths are uniform, so short words are drawn more often than they are numerous.
        reward: "score" pays the share of right positions, "exact" 1 or 0.
        separator: what ends the prompt.

    Raises:
        ValueError: if the lengths do not order or the reward is unknown.
    """

    probe_bound = 0.15

    def __init__(
        self,
        alphabet: str = "abcdefghij",
        min_length: int = 3,
        max_length: int = 8,
        reward: str = "score",
        separator: str = "=",
    ) -> None:
        if not 1 <= min_length <= max_length or not alphabet:
            raise ValueError(
                f"expected an alphabet and 1 <= min_length <= max_length, got {alphabet!r}, {min_length}, {max_length}."
            )
        check_reward(reward)
        self.alphabet, self.min_length, self.max_length = alphabet, min_length, max_length
        self.reward, self.separator = reward, separator

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        """Return a random word."""
        length = int(rng.integers(self.min_length, self.max_length + 1))
        word = "".join([self.alphabet[index] for index in rng.integers(len(self.alphabet), size=length)])
        return Example(prompt=word + self.separator, answer=self.answer_of(word))

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """Return the share of right positions, or 1 or 0."""
        return match_score(example.answer or "", text, self.reward)

    def answer_of(self, word: str) -> str:
        """Return the word itself."""
        return word


class Reverse(Copy):
    """Spell the word before the separator backwards: ``"abc=" -> "cba"``."""

    def answer_of(self, word: str) -> str:
        """Return the word backwards."""
        return word[::-1]


_DIGITS = "0123456789"


class RandomDigits:
    """Digits drawn apart from the prompt: a negative control. One prompt comes with many answers.

    Args:
        prompt_length: digits of the prompt, before the separator.
        answer_length: digits of the answer.
        reward: "score" pays the share of right positions (one in ten by chance), "exact" 1 or 0.
        separator: what ends the prompt.

    Raises:
        ValueError: if a length is not positive or the reward is unknown.
    """

    probe_bound = 0.2

    def __init__(
        self, prompt_length: int = 4, answer_length: int = 8, reward: str = "score", separator: str = "="
    ) -> None:
        if prompt_length < 1 or answer_length < 1:
            raise ValueError(f"lengths must be positive, got {prompt_length} and {answer_length}.")
        check_reward(reward)
        self.prompt_length, self.answer_length = prompt_length, answer_length
        self.reward, self.separator = reward, separator

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        """Return random digits, and other random digits."""
        digits = "".join([_DIGITS[index] for index in rng.integers(10, size=self.prompt_length + self.answer_length)])
        return Example(prompt=digits[: self.prompt_length] + self.separator, answer=digits[self.prompt_length :])

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """Return the share of right positions, or 1 or 0."""
        return match_score(example.answer or "", text, self.reward)
