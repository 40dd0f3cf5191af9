"""Options of config groups that are not files: one for each environment and each family of heads that is registered.

A file of the same name in the shipped tree comes instead, for what needs settings of its own.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

import gymnasium
from hydra.core.config_store import ConfigStore

import worldmtp.envs  # noqa: F401 - registers
from worldmtp.envs.catalogue import EXACT_WORLDS, WORLD_MOVES
from worldmtp.heads.registry import available_heads


@dataclass(frozen=True)
class Option:
    """An option of a config group: ``node`` is what a file would have; ``package`` None is the group's name."""

    group: str
    name: str
    node: dict[str, Any]
    package: str | None = None


def generated_options() -> Iterator[Option]:
    """Yield every option that no file of the shipped tree replaces; Hydra would merge the two."""
    tree = resources.files("worldmtp.configs")
    for option in (*_environments(), *_heads()):
        if not (tree / option.group / f"{option.name}.yaml").is_file():
            yield option


def store_options() -> None:
    """Make them known to Hydra; harmless to repeat."""
    store = ConfigStore.instance()
    for option in generated_options():
        store.store(group=option.group, name=option.name, node=option.node, package=option.package)


def option_name(env_id: str) -> str:
    """Return the name that chooses a registered environment: ``frozen_lake_8x8`` of ``worldmtp/FrozenLake8x8-v0``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[a-z]{2})(?=[0-9]+x)", "_", _short_name(env_id)).lower()


def _short_name(env_id: str) -> str:
    return env_id.rpartition("/")[2].rpartition("-v")[0]


def _environments() -> Iterator[Option]:
    for env_id in (one for one in gymnasium.registry if one.startswith("worldmtp/")):
        if moves := WORLD_MOVES.get(_short_name(env_id)):
            yield Option("env", option_name(env_id), _world_settings(env_id, moves), "_global_")
        elif _short_name(env_id) in EXACT_WORLDS:
            yield Option("env", option_name(env_id), _exact_settings(env_id), "_global_")
        else:
            yield Option("env", option_name(env_id), {"id": env_id, "kwargs": {}})


def _world_settings(env_id: str, moves: str) -> dict[str, Any]:
    """Return what a world starts with.

    Nobody has demonstrations for one, so there is no warm start. A turn is one move, of one token, and nothing but a
    move may be said. docs/environments.md says of which worlds it was measured how fast these settings learn.
    """
    return {
        "defaults": [
            {"override /agent": "ppo_world"},
            {"override /model": "world_tiny"},
            {"override /imagination": "off"},
        ],
        "env": {
            "id": env_id,
            "kwargs": {"max_turn": 1},
            "wrappers": [{"name": "action_mask", "alphabet": moves, "forbid_eos": True}],
        },
        "sft": {"num_steps": 0},
        "eval": {"num_prompts": 64},
    }


def _exact_settings(env_id: str) -> dict[str, Any]:
    """Return what texts of a known law start with: a small trunk, and a warm start that comes near the law.

    Reinforcement is short: who follows the law earns 1 already, and what is to be seen is how far it leads away. What
    the texts are drawn by stands here, since one ``task_kwargs`` that is given takes the place of all of an id's.
    """
    task_kwargs = EXACT_WORLDS[_short_name(env_id)][1]["task_kwargs"]
    return {
        "defaults": [{"override /model": "world_tiny"}],
        "env": {"id": env_id, "kwargs": {"task_kwargs": dict(task_kwargs)}},
        "sft": {"num_demonstrations": 16000, "num_steps": 800},
        "agent": {"rollout": {"num_iterations": 10}},
    }


def _heads() -> Iterator[Option]:
    for name in available_heads():
        yield Option("head", name, {"head": name, "head_spec": {}}, "model")
