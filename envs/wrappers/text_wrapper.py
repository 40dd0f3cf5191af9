"""What wrappers of the vector text env share: they can be used wherever the env itself can be rolled out."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper

from worldmtp.envs.problem import TextProblem
from worldmtp.envs.problem_view import ProblemView

OBSERVATION_KEYS = ("tokens", "length", "prompt_length")


def text_problem(env: Any) -> TextProblem:
    """The problem of the text env under ``env``.

    Raises:
        TypeError: if there is none, or a wrapper between has taken the observations apart.
    """
    problem = getattr(env.unwrapped, "problem", None)
    if not isinstance(problem, TextProblem):
        raise TypeError(
            f"{env} is not a TextGenEnv or TextGenVectorEnv; this wrapper needs its tokenizer and its examples. "
            "Rows made of single envs are wrapped one by one, before they are batched."
        )
    space = env.single_observation_space if isinstance(env, VectorEnv) else env.observation_space
    missing = [key for key in OBSERVATION_KEYS if not (isinstance(space, spaces.Dict) and key in space.spaces)]
    if missing:
        raise TypeError(f"observations of {env} lack {missing}; put this wrapper under the one that changes them.")
    return problem


class TextVectorWrapper(ProblemView, VectorWrapper):
    """A vector wrapper that shows what agents ask of a ``TextGenVectorEnv`` beyond gymnasium's interface.

    A wrapper that follows episodes says in ``own_state`` and ``load_own_state`` what a snapshot needs of it.

    Raises:
        TypeError: if what is wrapped is no vector text env.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self.problem = text_problem(env)

    @property
    def eos_terminates(self) -> bool:
        """Whether EOS ends the text and nothing else but the budget does."""
        return bool(self.env.unwrapped.eos_terminates)  # type: ignore[attr-defined]  # a text env's: text_problem saw

    def state(self) -> dict[str, Any]:
        """A snapshot of the env and of this wrapper.

        Raises:
            TypeError: if a wrapper between takes none.
        """
        return {"env": self._inner().state(), "wrapper": self.own_state()}

    def load_state(self, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Go on from a snapshot; returns the observation there.

        Raises:
            TypeError: if a wrapper between takes none.
        """
        obs = self._inner().load_state(state["env"])
        return self.load_own_state(state["wrapper"], obs)

    def own_state(self) -> dict[str, Any]:
        """What decides this wrapper's future, JSON-able."""
        return {}

    def load_own_state(self, state: Mapping[str, Any], obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Go on from there, where the env shows ``obs``; returns what this wrapper shows."""
        return obs

    def _inner(self) -> Any:
        if not hasattr(self.env, "load_state"):
            raise TypeError(f"{self.env} takes no snapshots; put it over {type(self).__name__}, not under it.")
        return self.env


class UnsavedVectorWrapper(TextVectorWrapper):
    """The outside of a stack in which a wrapper knows no snapshots, such as one of gymnasium's.

    Training works with the stack as it is. ``state`` holds the text env's own and names the wrappers whose state is
    not in it, and ``load_state`` refuses: going on with their statistics begun anew would be another run.
    """

    def state(self) -> dict[str, Any]:
        """A snapshot of the text env, and the names of the wrappers around it."""
        return {"env": self.env.unwrapped.state(), "unsaved": unsaved_wrappers(self.env)}  # type: ignore[attr-defined]

    def load_state(self, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Refuse.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"the wrappers {unsaved_wrappers(self.env)} keep no snapshots, so that a run in {self.env} cannot go on "
            "where it stopped; start a new run, or give the wrappers state() and load_state(state)."
        )


def unsaved_wrappers(env: VectorEnv) -> list[str]:
    """Return the class names of the wrappers around a vector env that have no ``load_state``, outermost first."""
    names = []
    while isinstance(env, VectorWrapper):
        if not hasattr(env, "load_state"):
            names.append(type(env).__name__)
        env = env.env
    return names
