"""Tasks by name, and the gymnasium ids made of them.

A task is registered by a decorator or by the catalogue; both give it the id ``worldmtp/<Name>-v0`` with string entry
points and JSON kwargs, so that its EnvSpec can be written into a file and read back. Tasks and worlds of this package
are named by their paths and imported when they are made: the kernel knows none of them.
"""

import inspect
import pkgutil
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import gymnasium

from worldmtp.choices import did_you_mean
from worldmtp.envs.task import RewardSpec, Task
from worldmtp.lazy import import_name

NAMESPACE = "worldmtp"
REASONING_GYM_PREFIX = "reasoning_gym:"
ENTRY_POINT = "worldmtp.envs:TextGenEnv"
VECTOR_ENTRY_POINT = "worldmtp.envs.make:make_rows"
_FUNCTION_TASK = "worldmtp.envs.tasks.function:FunctionTask"
WORLD_TASK = "worldmtp.envs.worlds.task:WorldTask"
FROM_GYMNASIUM = "worldmtp.envs.worlds.adapters:from_gymnasium"
_REASONING_GYM = "worldmtp.envs.tasks.reasoning_gym"

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

_Registered = TypeVar("_Registered", bound=Callable[..., Any])
_factories: dict[str, Callable[..., Task] | str] = {}


def env_id(name: str) -> str:
    """The gymnasium id of a registered task."""
    return f"{NAMESPACE}/{name}-v0"


def task_names() -> list[str]:
    """Names of all registered tasks."""
    return sorted(_factories)


def register_task(
    name: str,
    *,
    max_prompt: int | None = None,
    max_new: int | None = None,
    tokenizer: str | Mapping[str, Any] = "char",
    score: RewardSpec | None = None,
    probe_bound: float | None = None,
    task_kwargs: Mapping[str, Any] | None = None,
    **env_kwargs: Any,
) -> Callable[[_Registered], _Registered]:
    """Decorator that makes a task, and its gymnasium id, of a function, a Task class or a class of worlds.

    A function is ``rng -> Example``; a class with ``reset(seed)`` and ``step(text)`` is a ``TextWorld`` and becomes a
    ``WorldTask``, as does a gymnasium environment whose observations and actions are texts.

    Args:
        name: of the task; its id is ``worldmtp/<name>-v0``.
        max_prompt: tokens a prompt may take; None measures it, as ``TextEnvConfig`` says.
        max_new: tokens an answer may take, EOS included; None measures it where there are answers.
        tokenizer: spec of ``make_tokenizer``.
        score: ``(example, text) -> value`` or a rubric, for a function; see ``load_reward``. Without it the value is 1
            for exactly the answer, else 0.
        probe_bound: the largest mean value content-free text may earn from ``score``, or by saying it in every turn of
            a world; 0 by default, and ``task_kwargs={"probe_bound": ...}`` of a check replaces it. A Task class has
            its own, as a class attribute.
        task_kwargs: what the class is constructed with.
        **env_kwargs: further defaults of the environment, such as ``heldout_fraction`` or ``max_turn``.

    Raises:
        ValueError: if the name is no gymnasium name, or another function or class has it.
        TypeError: if what is decorated is not callable, or got a keyword that would have no effect on it: ``score`` on
            a class, ``probe_bound`` on a Task class, ``task_kwargs`` on a function.
    """
    if re.fullmatch(r"[A-Za-z]\w*", name) is None:
        raise ValueError(f"task name {name!r} must be letters, digits and underscores, beginning with a letter.")

    def register(source: _Registered) -> _Registered:
        if not callable(source):
            raise TypeError(f"register_task decorates a function or a class, got {type(source).__name__}.")
        if isinstance(source, type) and score is not None:
            needed = "its step pays" if _is_world(source) else "give it a score method"
            raise TypeError(f"{name!r} is a class: {needed} instead of register_task(score=...).")
        if isinstance(source, type) and not _is_world(source) and probe_bound is not None:
            raise TypeError(
                f"{name!r} is a Task class: write probe_bound = {probe_bound} into the class instead of "
                "register_task(probe_bound=...)."
            )
        if task_kwargs and not isinstance(source, type):
            raise TypeError(
                f"{name!r} is a function, which task_kwargs={dict(task_kwargs)} would not reach; register a class, or "
                "functools.partial(function, ...)."
            )
        factory = _factory_from(source, score, probe_bound or 0.0)
        known = _factories.get(name)
        if known is not None and _origin(known) != _origin(factory):
            raise ValueError(
                f"task {name!r} is already registered by {_origin(known)}; choose another name for {_origin(factory)}."
            )
        _factories[name] = factory
        kwargs: dict[str, Any] = {"task": name, "tokenizer": tokenizer}
        if task_kwargs:
            kwargs["task_kwargs"] = dict(task_kwargs)
        budgets = {"max_prompt": max_prompt, "max_new": max_new}
        kwargs |= {budget: tokens for budget, tokens in budgets.items() if tokens is not None}
        register_env(name, kwargs | env_kwargs)
        return source

    return register


def register_builtin(name: str, factory: str, env_kwargs: Mapping[str, Any]) -> None:
    """Register a task of this package by "module:Class", which is imported when the task is made."""
    _factories[name] = factory
    register_env(name, {"task": name, **env_kwargs})


def register_env(name: str, kwargs: Mapping[str, Any]) -> None:
    """Register the gymnasium id; an earlier registration of it, as by an import repeated, is replaced in silence."""
    gymnasium.registry.pop(env_id(name), None)
    gymnasium.register(
        id=env_id(name),
        entry_point=ENTRY_POINT,
        vector_entry_point=VECTOR_ENTRY_POINT,
        kwargs=dict(kwargs),
    )


def register_turn_env(name: str, kwargs: Mapping[str, Any]) -> None:
    """Register the turn-level environment, in a namespace of its own, since its actions are texts and not tokens."""
    gymnasium.registry.pop(name, None)
    gymnasium.register(id=name, entry_point="worldmtp.envs.worlds.turn_env:TextTurnEnv", kwargs=dict(kwargs))


def make_task(task: str | Task, task_kwargs: Mapping[str, Any] | None = None) -> Task:
    """The task a name stands for; a task is its own.

    A name is that of a registered task, ``"reasoning_gym:<dataset>"``, ``"<module>:<class>"``, or simply that of a
    reasoning-gym dataset.

    Raises:
        ValueError: if there is no such task, or a task that is already made is given kwargs.
        TypeError: if what the name stands for is not a Task.
    """
    kwargs = dict(task_kwargs or {})
    if not isinstance(task, str):
        if kwargs:
            raise ValueError(f"task_kwargs={kwargs} have no effect on {type(task).__name__}, which is already made.")
        return task
    made = _factory_of(task)(**kwargs)
    if not isinstance(made, Task):
        raise TypeError(f"task {task!r} is a {type(made).__name__} without the methods sample and score of a Task.")
    return made


def task_keywords(task: str) -> list[str]:
    """Return the names of what a task that has a name can be made with, as ``task_kwargs``.

    Raises:
        ValueError: if there is no such task.
    """
    return [name for name, one in inspect.signature(_factory_of(task)).parameters.items() if one.kind not in _VARIADIC]


def _factory_of(name: str) -> Callable[..., Task]:
    factory = _factories.get(name)
    if callable(factory):
        return factory
    if isinstance(factory, str):
        return _import(factory)
    if ":" in name and not name.startswith(REASONING_GYM_PREFIX):
        return _import(name)
    dataset_task = pkgutil.resolve_name(f"{_REASONING_GYM}:ReasoningGymTask")
    if name.startswith(REASONING_GYM_PREFIX):
        return partial(dataset_task, name.removeprefix(REASONING_GYM_PREFIX))
    datasets = pkgutil.resolve_name(f"{_REASONING_GYM}_datasets:dataset_names")()
    if name in datasets:
        return partial(dataset_task, name)
    raise ValueError(
        f"task {name!r} is not registered{did_you_mean(name, [*_factories, *datasets])} "
        f"Registered: {task_names()}, and every dataset of reasoning-gym; register your own with register_task."
    )


def _import(path: str) -> Callable[..., Task]:
    return _factory_from(import_name(path, f"task {path!r}"))


def _factory_from(source: Any, score: RewardSpec | None = None, probe_bound: float = 0.0) -> Callable[..., Task]:
    if not isinstance(source, type):
        return partial(_function_task, source, score, probe_bound)
    factory: Callable[..., Any] = partial(_world_task, source, probe_bound) if _is_world(source) else source
    return factory


def _is_world(source: type) -> bool:
    """Whether the class answers in turns; one that can sample and score is a Task, whatever else it can do."""
    return all(hasattr(source, name) for name in ("reset", "step")) and not hasattr(source, "score")


def _function_task(
    source: Callable[..., Any], score: RewardSpec | None, registered: float, /, probe_bound: float | None = None
) -> Task:
    bound = registered if probe_bound is None else probe_bound
    task: Task = pkgutil.resolve_name(_FUNCTION_TASK)(source, score, bound)
    return task


def _world_task(source: type, registered: float, /, probe_bound: float | None = None, **world_kwargs: Any) -> Task:
    """Return conversations with worlds of this class, or with gymnasium environments of it."""
    if issubclass(source, gymnasium.Env):
        source, world_kwargs = pkgutil.resolve_name(FROM_GYMNASIUM), {"env": source, **world_kwargs}
    task: Task = pkgutil.resolve_name(WORLD_TASK)(
        source, world_kwargs, probe_bound=registered if probe_bound is None else probe_bound
    )
    return task


def _origin(factory: Callable[..., Task] | str) -> str:
    if isinstance(factory, str):
        return factory
    source = factory.args[0] if isinstance(factory, partial) else factory
    return f"{source.__module__}:{source.__qualname__}"
