"""A task from two functions: one draws questions, the other says what an answer is worth."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

from worldmtp.envs.rubric import exact_match, load_reward, reward_score
from worldmtp.envs.task import Example, RewardSpec, Score

SampleFunction = Callable[[np.random.Generator], Example]


class FunctionTask:
    """A task from functions: prompts come from ``sample_function(rng)``, values from ``score_function(example, text)``.

    Without the latter a text is worth 1 if it is exactly the answer, else 0.

    Args:
        sample_function: draws an example; a module-level function, so that a scoring process can be given the task.
        score_function: value of a text, of any form that ``load_reward`` reads; 1 or more counts as exact.
        probe_bound: the largest mean value content-free text may earn from ``score_function``.
    """

    def __init__(
        self, sample_function: SampleFunction, score_function: RewardSpec | None = None, probe_bound: float = 0.0
    ) -> None:
        self.sample_function = sample_function
        self.score_function = exact_match if score_function is None else load_reward(score_function)
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
        """Return what the function says."""
        return reward_score(self.score_function, example, text)
