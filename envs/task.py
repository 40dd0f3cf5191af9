"""A task: where prompts come from and what an answer is worth. It knows no tokens, no batches and no gymnasium.

Three kinds, told apart by their methods. A ``Task`` is worth something when the answer is over. A ``DenseTask`` also
says how far each token came. A ``TurnTask`` answers: its worlds write text of their own into the episode.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

_ROUNDING = 8 * float(np.finfo(np.float32).eps)
"""By which a sum of rewards may miss 0 or 1: some ulps of float32, in which many worlds reckon."""


def clamp_return(total: float) -> float:
    """Return the total, or 0 or 1 where it lies outside [0, 1] by no more than rounding.

    What is really outside is passed on, for the checks and the trainer to refuse.
    """
    if 1.0 < total <= 1.0 + _ROUNDING:
        return 1.0
    return 0.0 if -_ROUNDING <= total < 0.0 else total


def is_full_return(total: float) -> bool:
    """Return whether a total is 1 or more but for rounding: ten times 0.1 add up to 0.9999999999999999."""
    return total >= 1.0 - _ROUNDING


@dataclass(frozen=True)
class Example:
    """A question. ``answer`` is the oracle's, a demonstration; None where a task has none to show.

    ``hidden`` is what decides the episode and the prompt does not say, such as the seed of a world. ``info`` is what a
    world tells whoever watches, and not the policy: the infos of the environment have it.
    """

    prompt: str
    answer: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)
    hidden: str = ""
    info: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)

    @property
    def key(self) -> str:
        """Blake2b of the prompt and what is hidden: the same question has the same key, whatever seed made it."""
        identity = f"{self.prompt}\0{self.hidden}" if self.hidden else self.prompt
        return hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Score:
    """What an answer is worth. A value that misses 0 or 1 from outside by rounding is 0 or 1.

    ``reason`` says why in one word: "ok", or the task's own, such as "containment"; the environment and the scorer give
    "no_eos", "error" and "timeout". ``exact`` is whether the task counts as solved, which metrics report.

    Raises:
        ValueError: if the value or a component is not a finite number.
    """

    value: float
    components: Mapping[str, float] = field(default_factory=dict, hash=False)
    reason: str = "ok"
    exact: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"Score(value={self.value}) must be finite; give a failed answer a number, such as 0.0.")
        object.__setattr__(self, "value", clamp_return(self.value))
        for name, component in self.components.items():
            if not isinstance(component, (int, float, np.number)) or not math.isfinite(component):
                raise ValueError(f"Score(components={{{name!r}: {component!r}}}) must be finite numbers.")


RewardFunction = Callable[[Example, str], float | Score]
"""What users write: the value of a text that answers an example, 1 and more counting as exact."""

RewardSpec = str | RewardFunction | Sequence[Any] | Mapping[str, Any]
"""How they give it: as a function, by its path, or as a rubric; see ``worldmtp.envs.rubric.load_reward``."""


@dataclass(frozen=True)
class Progress:
    """How far a text has come: what it would be worth if it stood here, and whether it ends here.

    Raises:
        ValueError: if the value is not a finite number.
    """

    value: float
    ended: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"Progress(value={self.value}) must be finite.")


@runtime_checkable
class Task(Protocol):
    """Two verbs. All randomness comes from ``rng``.

    A task may carry ``probe_bound: float``, the largest mean value that content-free text may earn (default 0), to
    which the checks hold it, ``universe_size: int``, the number of different questions where that is small, and
    ``paid_scorer: bool``, whether a score costs money, so that imagined answers are not scored (default False).
    """

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        """A question. Whether it belongs to ``split`` is decided by the hash of its prompt, not here."""
        ...

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """What ``text`` is worth as an answer; ``ids`` are its tokens as they were generated, EOS included."""
        ...


@runtime_checkable
class DenseTask(Task, Protocol):
    """A task that rewards tokens as they come and may end a text before EOS.

    The environment pays differences, ``progress(t).value - progress(t - 1).value`` from 0 on, and with the last token
    what ``score`` says less what was paid: the rewards of an episode add up to its score.
    """

    def progress(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Progress:
        """Where ``text``, the answer as far as it is written, stands."""
        ...


@runtime_checkable
class TextWorld(Protocol):
    """One conversation with something that answers, by the signatures that text environments of the field share.

    A world is decided by its seed and by what is said to it: the same seed and the same texts give the same replies.
    """

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        """Begin anew; the opening text, which is the prompt."""
        ...

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """What is said in reply, with the reward of this turn, ``terminated``, ``truncated`` and an info."""
        ...


@runtime_checkable
class WorldOfChance(TextWorld, Protocol):
    """A world in which the same can turn out otherwise: its start is a question, its dice are the episode's.

    Without these methods the seed decides the dice as well.
    """

    @property
    def has_dice(self) -> bool:
        """Whether anything behind the opening is left to chance."""
        ...

    def throw_dice(self, seed: int) -> None:
        """Let this seed decide all chance from here on.

        Called behind ``reset``, before the first turn, and, of a world that is planned in, behind any turn: what has
        been shown stands.
        """
        ...


@dataclass(frozen=True)
class Reply:
    """What a world does in a turn; ``text`` is what it says."""

    text: str
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any] = field(default_factory=dict, hash=False)


def opening_of(world: TextWorld, seed: int) -> tuple[str, dict[str, Any]]:
    """Return what a world says first, and its info.

    Raises:
        ValueError: if that is not what ``reset`` returned.
    """
    returned = world.reset(seed)
    if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[0], str):
        raise ValueError(
            f"{type(world).__name__}.reset returned {returned!r}; expected (text, info), as in ('hello', {{}})."
        )
    return returned[0], dict(returned[1] or {})


@runtime_checkable
class TurnTask(Task, Protocol):
    """A task whose episodes are conversations with worlds.

    An example's ``meta["seed"]`` is its world's seed, and its ``hidden`` that seed or what the world says is hidden.
    With ``meta["dice"]`` the dice are thrown with that seed (``WorldOfChance``). ``score`` is what a player earns who
    says ``text`` in every turn, so that constant answers can be measured.

    A task may carry ``has_dice``: the environment then throws new dice for each episode from its pool.
    """

    def make_world(self) -> TextWorld:
        """A world to be reset to an example's seed; one is made a row and reset for each episode."""
        ...
