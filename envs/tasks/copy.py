"""Copy and Reverse: the prompt determines the answer, so what heads predict can be right every time (upper anchors)."""

import numpy as np
from jaxtyping import Int64

from worldmtp.envs.task import Example, Score
from worldmtp.envs.tasks.matching import check_reward, match_score


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
        """A random word."""
        length = int(rng.integers(self.min_length, self.max_length + 1))
        word = "".join([self.alphabet[index] for index in rng.integers(len(self.alphabet), size=length)])
        return Example(prompt=word + self.separator, answer=self.answer_of(word))

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """Share of right positions, or 1 or 0."""
        return match_score(example.answer or "", text, self.reward)

    def answer_of(self, word: str) -> str:
        """The word itself."""
        return word


class Reverse(Copy):
    """Spell the word before the separator backwards: ``"abc=" -> "cba"``."""

    def answer_of(self, word: str) -> str:
        """The word backwards."""
        return word[::-1]
