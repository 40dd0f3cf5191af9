"""Environments by id: vector environments that can be trained on, and what there is to know of them beforehand."""

import importlib
import inspect
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from statistics import median
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, parse_env_id
from gymnasium.vector import AutoresetMode

from worldmtp.choices import env_settings, nearest
from worldmtp.envs.config import TextEnvConfig
from worldmtp.envs.registry import ENTRY_POINT, FROM_GYMNASIUM, VECTOR_ENTRY_POINT, WORLD_TASK, task_keywords
from worldmtp.envs.task import DenseTask, Task, TurnTask
from worldmtp.envs.text_env import (
    TextVectorEnv,
    TextVectorView,
    UnsavedVectorWrapper,
    WrapperSpec,
    unsaved_wrappers,
    wrap,
)
from worldmtp.envs.tokenizer import Tokenizer, alphabet_error
from worldmtp.envs.vector_env import TextGenVectorEnv
from worldmtp.envs.wrappers.autoreset import with_autoreset

_CONFIG_FIELDS = tuple(field.name for field in fields(TextEnvConfig))
_REMEDY = (
    "Training needs a TextGenVectorEnv, which worldmtp.register_task makes of any task or world, or a gymnasium "
    "environment whose observations and actions are texts; docs/own_environments.md has an example of each."
)


class MakingError(ValueError):
    """There is no such environment, or it is none of text; the message begins with its id."""


def make_rows(
    num_envs: int = 1,
    *,
    autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
    text_wrappers: Sequence[WrapperSpec] = (),
    **arguments: Any,
) -> TextVectorEnv:
    """Return rows of text: the vector entry point of the registered ids.

    Args:
        num_envs: rows.
        autoreset_mode: "same_step", "next_step", "disabled", or gymnasium's AutoresetMode.
        text_wrappers: by name, innermost first; see ``wrap``. Gymnasium keeps the name ``wrappers`` to itself.
        **arguments: of ``TextGenVectorEnv``.
    """
    rows: Any = with_autoreset(wrap(TextGenVectorEnv(num_envs, **arguments), text_wrappers), autoreset_mode)
    return rows if isinstance(rows, TextVectorEnv) else TextVectorView(rows)


_UNREGISTERED = (
    " One of your own is known when the module that registers it is imported: <module>:<id>, or imports=[./my_envs.py] "
    "(--import ./my_envs.py)."
)


def find_spec(env_id: str) -> EnvSpec:
    """Return the registered EnvSpec of an id; the module before a colon is imported first.

    Raises:
        MakingError: if the module cannot be imported, or there is no such id; the nearest is suggested.
    """
    module_name, _, name = env_id.rpartition(":")
    if module_name:
        try:
            importlib.import_module(module_name)
        except ImportError as error:
            raise MakingError(f"{env_id!r} cannot be made: {error}. Expected '<module>:<id>'.") from error
    if name in gymnasium.registry:
        return gymnasium.registry[name]
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:  # it looks for the nearest within the namespace that was given, or in none
        told = str(error) if "/" in name else f"there is no environment {name!r}."
        hint = "" if "Did you mean" in told else _nearest(name) or _UNREGISTERED
        raise MakingError(f"{env_id!r} cannot be made: {told}{hint}") from error


def make_text_vec(
    env_id: str,
    num_envs: int,
    autoreset_mode: str | AutoresetMode = AutoresetMode.DISABLED,
    wrappers: Sequence[WrapperSpec] = (),
    **kwargs: Any,
) -> TextVectorEnv:
    """Return rows of an environment, as its vector entry point makes them; of one that speaks text, as its world.

    Wrappers that the entry point puts around the rows are kept and in force. One of gymnasium's own may be among them;
    a warning says that such a run cannot be resumed, since it keeps no snapshots. The ``tokens`` of observations are a
    read-only view, which later steps change; set ``copy`` of the unwrapped environment for new ones in each call.

    Args:
        env_id: a gymnasium id, or ``<module>:<id>``.
        num_envs: rows.
        autoreset_mode: "same_step", "next_step", "disabled", or gymnasium's AutoresetMode.
        wrappers: more wrappers, by name, innermost first; see ``wrap``.
        **kwargs: what the environment is made with. Where its observations and actions are texts, those of
            ``TextEnvConfig`` are of its rows, and the others its own.

    Raises:
        MakingError: if there is no such id, what it makes is no environment of text, or a wrapper changes the actions
            or takes the observations apart.
        ValueError: if a wrapper cannot be made; see ``wrap``.
    """
    spec = find_spec(env_id)
    try:
        if spec.vector_entry_point is None:
            made: Any = TextGenVectorEnv(num_envs, **_as_world(spec, kwargs))
            made.task.make_world()  # one that speaks no text is refused here
        else:
            asked = {"autoreset_mode": AutoresetMode.DISABLED, **kwargs}
            made = gymnasium.make_vec(spec.id, num_envs=num_envs, **asked)
    except (gymnasium.error.Error, ImportError) as error:
        raise MakingError(f"{env_id!r} cannot be made: {error}") from error
    except TypeError as error:
        raise MakingError(f"{env_id!r} cannot be made with {kwargs}: {error}.{_cure(error, spec, kwargs)}") from error
    if not isinstance(made.unwrapped, TextVectorEnv):
        raise MakingError(f"{env_id!r} makes a {type(made.unwrapped).__name__}. {_REMEDY}")
    if isinstance(made.unwrapped, TextGenVectorEnv):
        made.unwrapped.copy = False
    return _trainable(env_id, with_autoreset(wrap(made, wrappers), autoreset_mode))


def _as_world(spec: EnvSpec, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of rows in which a gymnasium environment answers: what is not its own is the rows'."""
    config = {name: value for name, value in kwargs.items() if name in _CONFIG_FIELDS}
    own = {name: value for name, value in kwargs.items() if name not in _CONFIG_FIELDS}
    world = {"world": FROM_GYMNASIUM, "world_kwargs": {"env": spec.id, **own}}
    return {"task": WORLD_TASK, "task_kwargs": world, **config}


def _trainable(env_id: str, made: Any) -> TextVectorEnv:
    """Return what was made, with a view on it where a wrapper of gymnasium's hides what training asks."""
    base: Any = made.unwrapped
    if made.single_action_space != base.single_action_space:
        raise MakingError(
            f"{env_id!r} makes {made}, whose actions are {made.single_action_space} where those of the text env are "
            f"{base.single_action_space}; training acts with token ids, so leave out the wrapper that changes them."
        )
    unsaved = unsaved_wrappers(made)
    if not unsaved and isinstance(made, TextVectorEnv):
        return made
    try:
        view: Any = UnsavedVectorWrapper(made) if unsaved else TextVectorView(made)
    except TypeError as error:
        raise MakingError(f"{env_id!r} makes {made}: {error}") from error
    if unsaved:
        warnings.warn(
            f"{env_id!r} has wrappers without snapshots, {unsaved}: a run in it cannot be resumed. Give them state() "
            "and load_state(state), or use those of worldmtp.envs.",
            UserWarning,
            stacklevel=3,
        )
    return view


def _cure(error: TypeError, spec: EnvSpec, kwargs: Mapping[str, Any]) -> str:
    """Return what to do.

    A keyword that was given and is not taken is a typo, and one that is missing may be of the id's own ``task_kwargs``,
    which those that are given take the place of; else this is no environment of text.
    """
    lost = set(spec.kwargs.get("task_kwargs") or {}) - set(kwargs.get("task_kwargs") or {})
    if "task_kwargs" in kwargs and re.search(r"missing \d+ required", str(error)) and lost:
        kept = {f"task_kwargs.{name}": value for name, value in spec.kwargs["task_kwargs"].items() if name in lost}
        return f" task_kwargs take the place of all of the id's own; give those that are to stay: {env_settings(kept)}."
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    task_kwargs = kwargs.get("task_kwargs")
    of_task = set(task_kwargs) if isinstance(task_kwargs, Mapping) else set()
    if unknown is None or unknown[1] not in {*kwargs, *of_task}:
        return f" {_REMEDY}"
    task = {**spec.kwargs, **kwargs}.get("task")
    known = {name: f"task_kwargs.{name}" for name in (task_keywords(task) if isinstance(task, str) else ())}
    known |= {name: name for name in _CONFIG_FIELDS}
    found = nearest(unknown[1], known)
    if found is None:
        return ""
    value = kwargs[unknown[1]] if unknown[1] in kwargs else (task_kwargs or {})[unknown[1]]
    return f" Did you mean {known[found]!r}? In its place give {env_settings({known[found]: value})}."


def _nearest(name: str) -> str:
    """Return the nearest id of any namespace, as a question: who leaves out the namespace means an id of one."""
    ids = {parse_env_id(env_id)[1]: env_id for env_id in gymnasium.registry if "/" in env_id}
    found = nearest(re.sub(r"-v\d+$", "", name.rpartition("/")[2]), ids)
    return f" Did you mean: `{ids[found]}`?" if found else ""


@dataclass(frozen=True)
class Lengths:
    """Tokens of the texts of a small draw."""

    median: float
    max: int


@dataclass(frozen=True)
class Description:
    """An environment; ``answer`` is None where the task has no answers to show, EOS is not counted."""

    id: str
    kind: str
    what: str
    prompt: Lengths
    answer: Lengths | None
    max_prompt: int
    max_new: int
    vocab_size: int
    universe_size: int | None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def text_env_ids() -> list[str]:
    """Return the registered ids that this package makes, in alphabetical order."""
    ours = {ENTRY_POINT, VECTOR_ENTRY_POINT}
    return sorted(spec.id for spec in gymnasium.registry.values() if {spec.entry_point, spec.vector_entry_point} & ours)


def describe(env_id: str, num_examples: int = 24, seed: int = 0, **kwargs: Any) -> Description:
    """Return the description of an environment, measured on training examples.

    Args:
        env_id: a gymnasium id, or ``<module>:<id>``.
        num_examples: to measure on; a generator that is slow is asked for no more.
        seed: of the draw.
        **kwargs: what the environment is made with.

    Raises:
        ValueError: if the environment cannot be made, or its split not be filled.
    """
    envs = make_text_vec(env_id, 1, **kwargs)
    dataset, task, tokenizer = envs.dataset, envs.task, envs.tokenizer
    examples = dataset.draw("train", num_examples, seed, "evaluation")
    answers = [example.answer for example in examples if example.answer is not None]
    return Description(
        id=find_spec(env_id).id,
        kind=kind_of(task),
        what=subject_of(task),
        prompt=_lengths([example.prompt for example in examples], tokenizer),
        answer=_lengths(answers, tokenizer) if len(answers) == len(examples) else None,
        max_prompt=dataset.max_prompt,
        max_new=dataset.max_new,
        vocab_size=tokenizer.vocab_size,
        universe_size=getattr(task, "universe_size", None),
    )


def kind_of(task: Task) -> str:
    """Return the kind: "turns" where worlds reply, "dense" where tokens are rewarded as they come, else "answer"."""
    if isinstance(task, TurnTask):
        return "turns"
    return "dense" if isinstance(task, DenseTask) else "answer"


def subject_of(task: Task) -> str:
    """Return the first line of the docstring of what the task is made of: its world with kwargs, function or class."""
    dataset_name = getattr(task, "dataset_name", None)
    if dataset_name is not None:
        return f"{dataset_name} of reasoning-gym."
    source: Any = getattr(task, "sample_function", type(task))
    made_with: Mapping[str, Any] = {}
    if isinstance(task, TurnTask):
        world: Any = task.make_world()
        source, made_with = type(world), getattr(task, "world_kwargs", {})
        if hasattr(world, "game"):  # an adapter, which stands for what it holds
            source, made_with = type(getattr(world.game, "unwrapped", world.game)), {}
    while isinstance(source, partial):
        source = source.func
    subject = inspect.cleandoc(source.__doc__ or "").partition("\n")[0].replace("``", "")
    return " ".join([subject, *(f"{name}={value}" for name, value in made_with.items())]).strip()


def _lengths(texts: list[str], tokenizer: Tokenizer) -> Lengths:
    error = alphabet_error(tokenizer, texts)
    if error is not None:
        raise error
    counts = [len(tokenizer.encode(text)) for text in texts]
    return Lengths(median(counts), max(counts))
