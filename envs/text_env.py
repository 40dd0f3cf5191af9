"""What training asks of a vector environment of text, beyond gymnasium's interface, and wrappers that pass it on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from jaxtyping import Bool, Float64, Int, Int64

from worldmtp.choices import check_choice
from worldmtp.envs.dataset import TextDataset
from worldmtp.envs.rows import Observation, VectorReset, VectorStep
from worldmtp.envs.scoring import Scorer
from worldmtp.envs.task import Example, Task
from worldmtp.envs.tokenizer import Tokenizer
from worldmtp.envs.worth_rules import check_worth
from worldmtp.lazy import import_name

OBSERVATION_KEYS = ("tokens", "length", "prompt_length")
WRAPPERS = {
    "action_mask": "worldmtp.envs.wrappers.action_mask:VectorActionMask",
    "attention_mask": "worldmtp.envs.wrappers.views:VectorAttentionMask",
    "episode_recorder": "worldmtp.envs.wrappers.episode_recorder:VectorEpisodeRecorder",
    "numeric_infos": "worldmtp.envs.wrappers.views:VectorNumericInfos",
    "potential_shaping": "worldmtp.envs.wrappers.potential_shaping:VectorPotentialShaping",
}
"""Wrappers by the names that configs use."""

WrapperSpec = str | Mapping[str, Any]
"""A name of ``WRAPPERS``, ``"<module>:<class>"``, or a mapping of ``name`` and the wrapper's keywords."""


class KernelView:
    """What is asked of the rows of text that ``kernel`` names, by vectors, their wrappers and single environments."""

    kernel: "TextVectorEnv"

    @property
    def dataset(self) -> TextDataset:
        """The questions, tokens and budgets."""
        return self.kernel._dataset

    @property
    def scorer(self) -> Scorer:
        """With ``counters`` of scored answers, errors, time-outs and seconds."""
        return self.kernel._scorer

    @property
    def eos_terminates(self) -> bool:
        """Whether EOS ends the text and nothing else but the budget does: not where worlds reply or tasks end texts."""
        return self.kernel._eos_terminates

    @property
    def task(self) -> Task:
        """What is asked and scored."""
        return self.dataset.task

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back."""
        return self.dataset.tokenizer

    @property
    def max_new(self) -> int:
        """Tokens an answer may take, EOS included: no episode has more steps."""
        return self.dataset.max_steps

    def examples(
        self, split: str, num_examples: int, seed: int, purpose: str = "pool", fewer: bool = False
    ) -> list[Example]:
        """Return distinct examples of a split, by the stream of a purpose; more of them begin with the fewer."""
        return self.dataset.examples(split, num_examples, seed, purpose, fewer)

    def overlap(self) -> float:
        """Return the share of the held-out pool's questions that the training pool has."""
        return self.dataset.overlap()


class TextVectorEnv(KernelView, VectorEnv):
    """Rows of text: ``TextGenVectorEnv``, and whatever wraps it and keeps this interface."""

    _dataset: TextDataset
    """Set by a kernel, as are the next two."""
    _scorer: Scorer
    _eos_terminates: bool

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> VectorReset:
        """Begin new texts; see ``TextGenVectorEnv`` for the options."""
        return super().reset(seed=seed, options=options)  # type: ignore[arg-type]  # gymnasium asks for a dict

    @property
    def kernel(self) -> "TextVectorEnv":  # type: ignore[override]  # a property here, an attribute of single ones
        """The rows without their wrappers, which answer what a wrapper is asked."""
        kernel: Any = self.unwrapped
        return kernel

    @property
    def done(self) -> Bool[np.ndarray, " row"]:
        """The rows that have ended and wait for their reset, as a new array."""
        return self.kernel.done

    def example_of(self, row: int) -> Example:
        """Return the question that a row answers."""
        return self.kernel.example_of(row)

    def worth(
        self, rows: Int[np.ndarray, " answer"], answers: Sequence[Int64[np.ndarray, " _"]]
    ) -> Float64[np.ndarray, " answer"]:
        """Return what imagined answers to the questions of these rows are worth, by the task's own scorer.

        An answer is the tokens behind the prompt, up to EOS or the whole budget. No episode under way is touched,
        and the scorer counts these calls apart, in ``scorer.imagined``. What wrappers add to rewards is not in it.

        Raises:
            ValueError: a world replies, the task may end texts itself, a score costs money, or an answer is not over.
        """
        check_worth(self.task, self.scorer, self.eos_terminates)
        return self.kernel.worth(rows, answers)

    def state(self) -> dict[str, Any]:
        """Return a JSON-able snapshot of all that decides the episodes to come."""
        return self.kernel.state()

    def load_state(self, state: Mapping[str, Any]) -> Observation:
        """Go on from a snapshot; returns the observation there."""
        return self.kernel.load_state(state)


class TextVectorWrapper(TextVectorEnv, VectorWrapper):
    """A vector wrapper that shows what agents ask of a ``TextGenVectorEnv`` beyond gymnasium's interface.

    A wrapper that shows something else says so in ``shown``. One that follows episodes says in ``own_state`` and
    ``load_own_state`` what a snapshot needs of it; it sees rows that stand still when they end, and ``Autoreset`` goes
    over it.

    Raises:
        TypeError: if what is wrapped is no vector text env, or a wrapper between has taken the observations apart.
        ValueError: if rows reset themselves under a wrapper that needs their ends.
    """

    follows_episodes = True

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        if not isinstance(env.unwrapped, TextVectorEnv):
            raise TypeError(f"{env} is not a TextGenVectorEnv; this wrapper needs its tokenizer and its examples.")
        space = env.single_observation_space
        missing = [key for key in OBSERVATION_KEYS if not (isinstance(space, spaces.Dict) and key in space.spaces)]
        if missing:
            raise TypeError(f"observations of {env} lack {missing}; put this wrapper under the one that changes them.")
        mode = env.metadata.get("autoreset_mode")
        if self.follows_episodes and mode is not AutoresetMode.DISABLED:
            raise ValueError(
                f"rows of {env} reset themselves ({mode}), so {type(self).__name__} would not see their ends; put it "
                "under the autoreset: gymnasium.make_vec(id, text_wrappers=[...]), or Autoreset(wrapped, mode)."
            )

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> VectorReset:
        """Reset the env, and show what it shows as this wrapper does."""
        return self.shown(*super().reset(seed=seed, options=options))

    def step(self, actions: np.ndarray) -> VectorStep:
        """Step the env, and show what it shows as this wrapper does."""
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        obs, infos = self.shown(obs, infos)
        return obs, rewards, terminated, truncated, infos

    def shown(self, obs: Observation, infos: dict[str, Any]) -> VectorReset:
        """Return the observations and infos of this wrapper where the env has these: the same."""
        return obs, infos

    def state(self) -> dict[str, Any]:
        """Return a snapshot of the env and of this wrapper.

        Raises:
            TypeError: if a wrapper between takes none.
        """
        return {"env": self._inner().state(), "wrapper": self.own_state()}

    def load_state(self, state: Mapping[str, Any]) -> Observation:
        """Go on from a snapshot; returns the observation there.

        Raises:
            TypeError: if a wrapper between takes none.
        """
        obs = self._inner().load_state(state["env"])
        return self.load_own_state(state["wrapper"], obs)

    def own_state(self) -> dict[str, Any]:
        """Return what decides this wrapper's future, JSON-able."""
        return {}

    def load_own_state(self, state: Mapping[str, Any], obs: Observation) -> Observation:
        """Go on from there, where the env shows ``obs``; returns what this wrapper shows."""
        return self.shown(obs, {})[0]

    def _inner(self) -> Any:
        if not hasattr(self.env, "load_state"):
            raise TypeError(f"{self.env} takes no snapshots; put it over {type(self).__name__}, not under it.")
        return self.env


class UnsavedVectorWrapper(TextVectorWrapper):
    """The outside of a stack in which a wrapper knows no snapshots, such as one of gymnasium's.

    Training works with the stack as it is. ``state`` holds the text env's own and names the wrappers whose state is
    not in it, and ``load_state`` refuses: going on with their statistics begun anew would be another run.
    """

    follows_episodes = False

    def state(self) -> dict[str, Any]:
        """Return a snapshot of the text env, and the names of the wrappers around it."""
        return {"env": self.kernel.state(), "unsaved": unsaved_wrappers(self.env)}

    def load_state(self, state: Mapping[str, Any]) -> Observation:
        """Refuse with a ValueError."""
        raise ValueError(
            f"the wrappers {unsaved_wrappers(self.env)} keep no snapshots, so that a run in {self.env} cannot go on "
            "where it stopped; start a new run, or give the wrappers state() and load_state(state)."
        )


class TextVectorView(TextVectorWrapper):
    """The outside of a stack whose outermost wrapper keeps snapshots but hides what training asks."""

    follows_episodes = False


def unsaved_wrappers(env: VectorEnv) -> list[str]:
    """Return the class names of the wrappers around a vector env that have no ``load_state``, outermost first."""
    names = []
    while isinstance(env, VectorWrapper):
        if not hasattr(env, "load_state"):
            names.append(type(env).__name__)
        env = env.env
    return names


def wrap(env: VectorEnv, wrappers: Sequence[WrapperSpec]) -> VectorEnv:
    """Return the environment in its wrappers, the first of them innermost.

    Raises:
        ValueError: if a name is unknown (the nearest is suggested), or keywords do not fit the wrapper.
    """
    for wrapper in wrappers:
        name, kwargs = _named(wrapper)
        made_by = _class_of(name)
        try:
            env = made_by(env, **kwargs)
        except TypeError as error:
            raise ValueError(f"wrapper {name!r} does not take {kwargs}: {error}") from error
    return env


def unrecorded(wrappers: Sequence[WrapperSpec]) -> list[WrapperSpec]:
    """Return the wrappers without those that write episodes into a file, which belongs to one environment alone.

    Raises:
        ValueError: as of ``wrap``.
    """
    return [wrapper for wrapper in wrappers if not getattr(_class_of(_named(wrapper)[0]), "writes_a_file", False)]


def _named(wrapper: WrapperSpec) -> tuple[str, dict[str, Any]]:
    """Return the name and the keywords."""
    kwargs = {"name": wrapper} if isinstance(wrapper, str) else dict(wrapper)
    name = kwargs.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"wrapper {wrapper!r} has no name; expected a name, or {{'name': ..., keywords}}.")
    return name, kwargs


def _class_of(name: str) -> Any:
    if ":" not in name:
        check_choice("wrapper", name, WRAPPERS)
    return import_name(WRAPPERS.get(name, name), f"wrapper {name!r}")
