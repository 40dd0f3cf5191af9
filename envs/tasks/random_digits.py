"""RandomDigits: no policy and no head can know the answer, so whatever measures foresight must stay at chance on it."""

import numpy as np
from jaxtyping import Int64

from worldmtp.envs.task import Example, Score
from worldmtp.envs.tasks.matching import check_reward, match_score

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
        """Random digits, and other random digits."""
        digits = "".join([_DIGITS[index] for index in rng.integers(10, size=self.prompt_length + self.answer_length)])
        return Example(prompt=digits[: self.prompt_length] + self.separator, answer=digits[self.prompt_length :])

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """Share of right positions, or 1 or 0."""
        return match_score(example.answer or "", text, self.reward)
