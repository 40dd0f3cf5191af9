"""IncreasingNumbers: go on counting upwards. The smallest task on which partial credit alone teaches.

After the toy reward of RL4LMs, which pays how many numbers of a text are in increasing order (Ramamurthy et al. 2023,
"Is reinforcement learning (not) for natural language processing?", https://arxiv.org/abs/2210.01241, and its
RewardIncreasingNumbers). We differ where its reward can be earned without looking at the prompt:

* there the prompt is a dummy and any increasing text earns all; here a number must follow the one before it within
  ``max_step``, the first one the prompt's last, so that no constant text is right for every prompt;
* there words that are no numbers are skipped, and cost only as part of the length; here the first of them ends the
  count;
* there a number is what ``float`` reads, "inf" and "1e9" included; here it is ASCII digits without leading zeros;
* there the count is divided by the number of words or by half of a least number of them, whichever is more; here by
  the number of words or by the number asked for, so that fewer numbers than that never earn all.
"""

import re

import numpy as np
from jaxtyping import Int64

from worldmtp.envs.task import Example, Score

_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


class IncreasingNumbers:
    """Write the numbers that follow: ``"3 7 12=" -> "13 14 15 16 17"``, or any others with steps of 1 to 9.

    Args:
        num_given: numbers of the prompt.
        num_numbers: numbers asked for.
        max_first: the prompt's first number is uniform in 0..max_first.
        max_step: a number is greater than the one before by 1..max_step, in prompts (uniform) and in answers.
        separator: what ends the prompt.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self, num_given: int = 3, num_numbers: int = 5, max_first: int = 36, max_step: int = 9, separator: str = "="
    ) -> None:
        if num_given < 1 or num_numbers < 1 or max_first < 0 or max_step < 1:
            raise ValueError(
                "expected num_given, num_numbers and max_step of at least 1 and max_first of at least 0, got "
                f"{num_given}, {num_numbers}, {max_step} and {max_first}."
            )
        self.num_given, self.num_numbers = num_given, num_numbers
        self.max_first, self.max_step, self.separator = max_first, max_step, separator
        self.universe_size = (max_first + 1) * max_step ** (num_given - 1)
        self.probe_bound = 0.0

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        """Increasing numbers; the answer goes on in steps of 1."""
        steps = rng.integers(1, self.max_step + 1, size=self.num_given - 1)
        numbers = np.cumsum([int(rng.integers(self.max_first + 1)), *steps.tolist()]).tolist()
        following = range(numbers[-1] + 1, numbers[-1] + 1 + self.num_numbers)
        return Example(prompt=" ".join(map(str, numbers)) + self.separator, answer=" ".join(map(str, following)))

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """Numbers until the first that does not follow, as a share of the words or of the number asked for.

        Raises:
            ValueError: if the prompt ends in no number.
        """
        given = example.prompt.removesuffix(self.separator).split()
        if not given or _NUMBER.fullmatch(given[-1]) is None:
            raise ValueError(f"the prompt {example.prompt!r} has no last number that others could follow.")
        words = text.split()
        last, count = int(given[-1]), 0
        for word in words:
            if _NUMBER.fullmatch(word) is None or not 1 <= int(word) - last <= self.max_step:
                break
            last, count = int(word), count + 1
        exact = count == len(words) == self.num_numbers
        value = min(count, self.num_numbers) / max(len(words), self.num_numbers)
        return Score(value=value, components={"increasing": float(count)}, exact=exact)
