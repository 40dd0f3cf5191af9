"""Rewards that users write: a function of an example and a text, or a rubric, which is several of them with weights.

``register_task(score=...)``, ``DataTask(reward=...)`` and ``CorpusTask(reward=...)`` take a function,
"<module>:<function>", a ``Rubric``, or what a config file can hold of it: a list of mappings.
"""

import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from re import fullmatch
from typing import Any

from worldmtp.choices import check_choice, did_you_mean
from worldmtp.envs.task import Example, RewardFunction, RewardSpec, Score, is_full_return


def exact_match(example: Example, text: str) -> Score:
    """Return 1 if the text is the answer of the example, blanks around it apart, else 0."""
    exact = example.answer is not None and text == example.answer.strip()
    return Score(value=float(exact), exact=exact)


def load_reward(reward: RewardSpec) -> RewardFunction:
    """Return the reward function that a path, a list or a mapping stands for; a function stands for itself.

    A list holds what ``Rubric`` is made of, and a mapping the arguments of ``Rubric``.

    Raises:
        ValueError: a path has no colon, its module cannot be imported or has no such function, the function does not
            take an example and a text, or the rubric is refused.
        TypeError: what is found cannot be called.
    """
    if isinstance(reward, str):
        function: object = _import_function(reward)
    elif isinstance(reward, Mapping):
        unknown = sorted(set(map(str, reward)) - {"rewards", "exact"})
        if unknown or "rewards" not in reward:
            raise ValueError(
                f"a reward that is a mapping is a rubric, with the keys 'rewards' and 'exact', got {sorted(reward)}; "
                "put a single reward into a list."
            )
        return Rubric(**reward)
    elif isinstance(reward, Sequence):
        return Rubric(reward)
    else:
        function = reward
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


def _import_function(path: str) -> object:
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"reward={path!r} must be '<module>:<function>', such as 'my_rewards:score'.")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"reward={path!r}: the module {module_name!r} cannot be imported ({error}); it must be installed, or "
            "in a folder that Python searches."
        ) from error
    if not hasattr(module, attribute):
        otherwise = f"; define it there as {attribute}(example, text)."
        raise ValueError(
            f"reward={path!r}: {module_name} has no {attribute!r}{did_you_mean(attribute, dir(module), otherwise)}"
        )
    return getattr(module, attribute)


def reward_score(function: RewardFunction, example: Example, text: str) -> Score:
    """Return what the function says: a Score as it is, a number with 1 or more counting as exact.

    Raises:
        TypeError: it says neither.
        ValueError: the number is not finite.
    """
    result: Any = function(example, text)  # whatever its hint says
    if isinstance(result, Score):
        return result
    try:
        if isinstance(result, (str, bytes)):  # float would read "0.5", and a text is no value
            raise TypeError
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


@dataclass(frozen=True)
class WeightedReward:
    """One reward of a rubric; ``name`` is that of its component."""

    name: str
    function: RewardFunction
    weight: float


class Rubric:
    """Several reward functions as one: the weighted mean of what they pay, which names each of them as a component.

    ::

        Rubric([("right", is_right), ("short", brevity, 0.1), ("num_words", count_words, 0.0)], exact="right")

    The value of an answer is ``sum_i w_i r_i / sum_i w_i``. Weights are normalised, so only their ratios matter, and
    the value lies in [0, 1] because the rewards that are paid do. A reward of weight 0 is a metric: it may be any
    finite number, and changes nothing but its component. The order of the rewards changes nothing.

    Components of the score are what each function returned, before its weight; those of a function that returns a
    ``Score`` with components of its own stand beside it as ``<name>.<component>``. The reasons other than "ok" of the
    paid rewards are joined by "+". Where one function raises, be it a metric, the answer has failed, and the error
    carries the name of the reward.

    Args:
        rewards: tuples (name, reward) or (name, reward, weight), or mappings with these keys; a reward is what
            ``load_reward`` reads, and a weight left out is 1.
        exact: the reward that decides whether an answer counts as solved; by default all that are paid must say so.

    Raises:
        ValueError: an entry has another form, two have one name, no weight is positive, or ``exact`` names none.
    """

    def __init__(self, rewards: Sequence[Any], exact: str | None = None) -> None:
        self.rewards = tuple(_entry(one) for one in rewards)
        names = [one.name for one in self.rewards]
        if len(set(names)) != len(names):
            raise ValueError(f"two rewards of a rubric have one name: {names}; give each its own.")
        largest = max((one.weight for one in self.rewards), default=0.0)
        if largest == 0.0:
            raise ValueError(f"the rewards {names} of a rubric pay nothing; give at least one a positive weight.")
        if exact is not None:
            check_choice("exact", exact, names)
        self.exact = exact
        total = math.fsum(one.weight / largest for one in self.rewards)
        self._shares = [one.weight / largest / total for one in self.rewards]

    def __call__(self, example: Example, text: str) -> Score:
        """Return the weighted mean, with what each function said as a component.

        Raises:
            ValueError: a reward that is paid is outside [0, 1].
            Exception: whatever a function raises, with its name in a note.
        """
        scores = [self._ask(one, example, text) for one in self.rewards]
        components: dict[str, float] = {}
        for one, score in zip(self.rewards, scores, strict=True):
            components[one.name] = score.value
            components |= {f"{one.name}.{part}": value for part, value in score.components.items()}
        paid = [score for one, score in zip(self.rewards, scores, strict=True) if one.weight > 0]
        decides = [score for one, score in zip(self.rewards, scores, strict=True) if one.name == self.exact] or paid
        return Score(
            value=math.fsum(share * score.value for share, score in zip(self._shares, scores, strict=True)),
            components=components,
            reason="+".join(sorted({score.reason for score in paid} - {"ok"})) or "ok",
            exact=all(score.exact for score in decides),
        )

    def _ask(self, one: WeightedReward, example: Example, text: str) -> Score:
        try:
            score = reward_score(one.function, example, text)
            if one.weight > 0 and not 0.0 <= score.value <= 1.0:
                raise ValueError(f"{score.value} is outside [0, 1]; scale it, or give it weight 0 to log it only.")
        except BaseException as error:
            error.add_note(f"This is of the reward {one.name!r} of a rubric.")
            raise
        return score


def _entry(one: Any) -> WeightedReward:
    keys = ("name", "reward", "weight")
    if isinstance(one, Sequence) and not isinstance(one, str) and len(one) <= len(keys):
        one = dict(zip(keys, one, strict=False))
    if not isinstance(one, Mapping) or not {"name", "reward"} <= set(one) <= set(keys):
        raise ValueError(f"{one!r} is no reward of a rubric; expected (name, reward, weight), or a mapping of {keys}.")
    name, weight = one["name"], one.get("weight", 1.0)
    if not isinstance(name, str) or fullmatch("[A-Za-z][A-Za-z0-9_-]*", name) is None:
        raise ValueError(
            f"the name {name!r} of a reward must be letters, digits, '_' and '-', beginning with a letter."
        )
    if not isinstance(weight, (int, float)) or not 0.0 <= weight < math.inf:
        raise ValueError(
            f"weight={weight!r} of the reward {name!r} must be a finite number of at least 0; write a penalty p "
            "between 0 and 1 as the reward 1 - p."
        )
    return WeightedReward(name, load_reward(one["reward"]), float(weight))
