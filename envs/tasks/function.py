"""A task from two functions, and the rewards that users write: functions of an example and a text."""

import importlib
import inspect
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

from worldmtp.choices import did_you_mean
from worldmtp.envs.task import Example, RewardFunction, Score, is_full_return

SampleFunction = Callable[[np.random.Generator], Example]


def load_reward(reward: str | RewardFunction) -> RewardFunction:
    """The function "<module>:<function>" stands for; a function is its own.

    Raises:
        ValueError: if the path has no colon, the module cannot be imported, it has no such function, or one that does
            not take an example and a text.
        TypeError: if what is found cannot be called.
    """
    if not isinstance(reward, str):
        function: object = reward
    else:
        module_name, colon, attribute = reward.partition(":")
        if not (module_name and colon and attribute):
            raise ValueError(f"reward={reward!r} must be '<module>:<function>', such as 'my_rewards:score'.")
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise ValueError(
                f"reward={reward!r}: the module {module_name!r} cannot be imported ({error}); it must be installed, or "
                "in a folder that Python searches."
            ) from error
        if not hasattr(module, attribute):
            otherwise = f"; define it there as {attribute}(example, text)."
            raise ValueError(
                f"reward={reward!r}: {module_name} has no {attribute!r}"
                f"{did_you_mean(attribute, dir(module), otherwise)}"
            )
        function = getattr(module, attribute)
    if not callable(function):
        raise TypeError(
            f"reward={reward!r} is a {type(function).__name__}; expected a function (example, text) -> float."
        )
    try:
        signature = inspect.signature(function)
    except ValueError:  # a built-in that does not tell
        return function
    try:
        signature.bind(None, "")
    except TypeError as error:
        raise ValueError(
            f"reward={_name_of(function)} is defined with {signature} and called with (example, text): {error}."
        ) from error
    return function


def reward_score(function: RewardFunction, example: Example, text: str) -> Score:
    """What the function says: a Score as it is, a number with 1 or more counting as exact.

    Raises:
        TypeError: if it says neither.
        ValueError: if the number is not finite.
    """
    result = function(example, text)
    if isinstance(result, Score):
        return result
    try:
        value = float(result)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{_name_of(function)} returned {result!r} of type {type(result).__name__}; expected a number, or a Score."
        ) from error
    if not math.isfinite(value):
        raise ValueError(f"{_name_of(function)} returned {value}; give a failed answer a finite number, such as 0.0.")
    return Score(value=value, exact=is_full_return(value))


def _name_of(function: RewardFunction) -> str:
    return f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', repr(function))}"


class FunctionTask:
    """A task from functions: prompts come from ``sample_function(rng)``, values from ``score_function(example, text)``.

    Without the latter a text is worth 1 if it is exactly the answer, else 0.

    Args:
        sample_function: draws an example; a module-level function, so that a scoring process can be given the task.
        score_function: value of a text; a value of 1 or more counts as exact.
        probe_bound: the largest mean value content-free text may earn from ``score_function``.
    """

    def __init__(
        self, sample_function: SampleFunction, score_function: RewardFunction | None = None, probe_bound: float = 0.0
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
