"""A task from one function, which is what most users have."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

from worldmtp.envs.task import Example, Score
from worldmtp.envs.tasks.rewards import load_reward, reward_score

SampleFunction = Callable[[np.random.Generator], Example]
ScoreFunction = Callable[[Example, str], float | Score]


class FunctionTask:
    """Prompts from ``sample_function(rng)``; 1 for exactly the answer, else 0, or what ``score_function`` says.

    Args:
        sample_function: draws an example; a module-level function, so that a scoring process can be given the task.
        score_function: value of a text; a value of 1 or more counts as exact.
        probe_bound: the largest mean value content-free text may earn from ``score_function``.
    """

    def __init__(
        self, sample_function: SampleFunction, score_function: ScoreFunction | None = None, probe_bound: float = 0.0
    ) -> None:
        self.sample_function = sample_function
        self.score_function = None if score_function is None else load_reward(score_function)
        self.probe_bound = probe_bound

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        """What the function draws.

        Raises:
            TypeError: if that is not an Example.
        """
        example = self.sample_function(rng)
        if not isinstance(example, Example):
            raise TypeError(
                f"{self.sample_function.__name__}(rng) returned {type(example).__name__}; "
                "return worldmtp.envs.Example(prompt=..., answer=...)."
            )
        return example

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """The function's value, or whether the text is the answer."""
        if self.score_function is None:
            exact = example.answer is not None and text == example.answer.strip()
            return Score(value=float(exact), exact=exact)
        return reward_score(self.score_function, example, text)
