"""Worlds by name, for who speaks to a world and not to a token environment."""

from collections.abc import Mapping
from typing import Any

import gymnasium

from worldmtp.envs.registry import env_id, make_task
from worldmtp.envs.task import TextWorld, TurnTask
from worldmtp.envs.worlds.task import WorldTask


def make_world(world: str | TextWorld, world_kwargs: Mapping[str, Any] | None = None) -> TextWorld:
    """The world a name stands for; a world is its own.

    Raises:
        ValueError: if there is no such name, or a world that is already made is given kwargs.
        TypeError: if what the name stands for has no worlds.
    """
    if not isinstance(world, str):
        if world_kwargs:
            raise ValueError(f"world_kwargs={dict(world_kwargs)} have no effect on {type(world).__name__}.")
        if isinstance(world, type) or not isinstance(world, TextWorld):
            raise TypeError(f"world={world!r} must be a name or an object with reset(seed) and step(text).")
        return world
    if ":" in world:
        return WorldTask(world, world_kwargs).make_world()
    spec = gymnasium.registry.get(env_id(world))
    task_kwargs = {} if spec is None else dict(spec.kwargs.get("task_kwargs", {}))
    task = make_task(world, task_kwargs)
    if not isinstance(task, TurnTask):
        raise TypeError(f"task {world!r} is a {type(task).__name__} without worlds; nobody answers there.")
    if world_kwargs is None:
        return task.make_world()
    if not isinstance(task, WorldTask):
        raise ValueError(
            f"world_kwargs={dict(world_kwargs)} fit no {type(task).__name__}; register the task with them."
        )
    return WorldTask(task.factory, {**task.world_kwargs, **world_kwargs}).make_world()
