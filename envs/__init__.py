"""Text generation as gymnasium environments: token in, token out; text is a view.

Importing this registers the ids ``worldmtp/<Name>-v0``. It imports neither torch nor transformers nor reasoning-gym:
public names are loaded when they are used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from worldmtp.envs.catalogue import register_catalogue
from worldmtp.envs.registry import register_task

if TYPE_CHECKING:
    from worldmtp.envs.checks import check_text_env, hack_probes
    from worldmtp.envs.imagined import ImaginedVectorEnv
    from worldmtp.envs.making import make_text_vec
    from worldmtp.envs.registry import env_id, make_task, task_names
    from worldmtp.envs.scoring import Scorer
    from worldmtp.envs.single import TextGenEnv
    from worldmtp.envs.splits import draw_examples, prompt_overlap, split_of
    from worldmtp.envs.task import Example, Score, Task
    from worldmtp.envs.tokenizer import CharTokenizer, Tokenizer, TransformersTokenizer, make_tokenizer
    from worldmtp.envs.trainable import TextVectorEnv
    from worldmtp.envs.vector import TextGenVectorEnv
    from worldmtp.envs.vector_checks import check_vector_env
    from worldmtp.envs.worlds.adapters import from_gem, from_text_object, from_textarena
    from worldmtp.envs.worlds.task import WorldTask
    from worldmtp.envs.worlds.turn_env import TextTurnEnv
    from worldmtp.envs.wrappers.action_mask import ActionMask, VectorActionMask
    from worldmtp.envs.wrappers.attention_mask import AttentionMask, VectorAttentionMask
    from worldmtp.envs.wrappers.episode_log import read_episodes
    from worldmtp.envs.wrappers.episode_recorder import EpisodeRecorder, VectorEpisodeRecorder
    from worldmtp.envs.wrappers.numeric_infos import VectorNumericInfos
    from worldmtp.envs.wrappers.potential_shaping import PotentialShaping, VectorPotentialShaping

_MODULE_OF = {
    "ActionMask": "wrappers.action_mask",
    "AttentionMask": "wrappers.attention_mask",
    "CharTokenizer": "tokenizer",
    "EpisodeRecorder": "wrappers.episode_recorder",
    "Example": "task",
    "ImaginedVectorEnv": "imagined",
    "PotentialShaping": "wrappers.potential_shaping",
    "Score": "task",
    "Scorer": "scoring",
    "Task": "task",
    "TextGenEnv": "single",
    "TextGenVectorEnv": "vector",
    "TextTurnEnv": "worlds.turn_env",
    "TextVectorEnv": "trainable",
    "Tokenizer": "tokenizer",
    "TransformersTokenizer": "tokenizer",
    "VectorActionMask": "wrappers.action_mask",
    "VectorAttentionMask": "wrappers.attention_mask",
    "VectorEpisodeRecorder": "wrappers.episode_recorder",
    "VectorNumericInfos": "wrappers.numeric_infos",
    "VectorPotentialShaping": "wrappers.potential_shaping",
    "WorldTask": "worlds.task",
    "check_text_env": "checks",
    "check_vector_env": "vector_checks",
    "draw_examples": "splits",
    "env_id": "registry",
    "from_gem": "worlds.adapters",
    "from_text_object": "worlds.adapters",
    "from_textarena": "worlds.adapters",
    "hack_probes": "checks",
    "make_task": "registry",
    "make_text_vec": "making",
    "make_tokenizer": "tokenizer",
    "prompt_overlap": "splits",
    "read_episodes": "wrappers.episode_log",
    "split_of": "splits",
    "task_names": "registry",
}

__all__ = [
    "ActionMask",
    "AttentionMask",
    "CharTokenizer",
    "EpisodeRecorder",
    "Example",
    "ImaginedVectorEnv",
    "PotentialShaping",
    "Score",
    "Scorer",
    "Task",
    "TextGenEnv",
    "TextGenVectorEnv",
    "TextTurnEnv",
    "TextVectorEnv",
    "Tokenizer",
    "TransformersTokenizer",
    "VectorActionMask",
    "VectorAttentionMask",
    "VectorEpisodeRecorder",
    "VectorNumericInfos",
    "VectorPotentialShaping",
    "WorldTask",
    "check_text_env",
    "check_vector_env",
    "draw_examples",
    "env_id",
    "from_gem",
    "from_text_object",
    "from_textarena",
    "hack_probes",
    "make_task",
    "make_text_vec",
    "make_tokenizer",
    "prompt_overlap",
    "read_episodes",
    "register_task",
    "split_of",
    "task_names",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names: {__all__}.")
    return getattr(importlib.import_module(f"worldmtp.envs.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


register_catalogue()
