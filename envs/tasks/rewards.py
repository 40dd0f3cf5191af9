"""Rewards that users write: functions of an example and a text, named by where they can be imported from."""

import importlib
import inspect
import math
from collections.abc import Callable

from worldmtp.choices import did_you_mean
from worldmtp.envs.task import Example, Score, is_full_return

RewardFunction = Callable[[Example, str], float | Score]


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
