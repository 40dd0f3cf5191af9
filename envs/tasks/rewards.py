"""Rewards that users write: functions of an example and a text, named by where they can be imported from."""

import importlib
from collections.abc import Callable

from worldmtp.choices import did_you_mean
from worldmtp.envs.task import Example, Score, is_full_return

RewardFunction = Callable[[Example, str], float | Score]


def load_reward(reward: str | RewardFunction) -> RewardFunction:
    """The function "<module>:<function>" stands for; a function is its own.

    Raises:
        ValueError: if the path has no colon, the module cannot be imported, or it has no such function.
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
    return function


def reward_score(function: RewardFunction, example: Example, text: str) -> Score:
    """What the function says: a Score as it is, a number with 1 or more counting as exact."""
    result = function(example, text)
    if isinstance(result, Score):
        return result
    value = float(result)
    return Score(value=value, exact=is_full_return(value))
