"""Text generation as gymnasium environments: token in, token out; text is a view.

Importing this registers the ids ``worldmtp/<Name>-v0``. It imports neither torch nor transformers nor reasoning-gym:
public names are loaded when they are used.
"""

from typing import TYPE_CHECKING

from worldmtp.envs.catalogue import register_catalogue
from worldmtp.envs.registry import register_task as register_task
from worldmtp.lazy import lazy_exports

if TYPE_CHECKING:
    from worldmtp.envs.checks import check_text_env as check_text_env
    from worldmtp.envs.checks import hack_probes as hack_probes
    from worldmtp.envs.config import TextEnvConfig as TextEnvConfig
    from worldmtp.envs.dataset import draw_examples as draw_examples
    from worldmtp.envs.dataset import prompt_overlap as prompt_overlap
    from worldmtp.envs.imagined import ImaginedVectorEnv as ImaginedVectorEnv
    from worldmtp.envs.make import make_text_vec as make_text_vec
    from worldmtp.envs.registry import env_id as env_id
    from worldmtp.envs.registry import make_task as make_task
    from worldmtp.envs.registry import task_names as task_names
    from worldmtp.envs.rubric import Rubric as Rubric
    from worldmtp.envs.rubric import exact_match as exact_match
    from worldmtp.envs.scoring import Scorer as Scorer
    from worldmtp.envs.single_env import TextGenEnv as TextGenEnv
    from worldmtp.envs.splits import split_of as split_of
    from worldmtp.envs.task import Example as Example
    from worldmtp.envs.task import Score as Score
    from worldmtp.envs.task import Task as Task
    from worldmtp.envs.text_env import TextVectorEnv as TextVectorEnv
    from worldmtp.envs.tokenizer import CharTokenizer as CharTokenizer
    from worldmtp.envs.tokenizer import Tokenizer as Tokenizer
    from worldmtp.envs.tokenizer import TransformersTokenizer as TransformersTokenizer
    from worldmtp.envs.tokenizer import make_tokenizer as make_tokenizer
    from worldmtp.envs.vector_checks import check_vector_env as check_vector_env
    from worldmtp.envs.vector_env import TextGenVectorEnv as TextGenVectorEnv
    from worldmtp.envs.worlds.adapters import from_gem as from_gem
    from worldmtp.envs.worlds.adapters import from_gymnasium as from_gymnasium
    from worldmtp.envs.worlds.adapters import from_text_object as from_text_object
    from worldmtp.envs.worlds.adapters import from_textarena as from_textarena
    from worldmtp.envs.worlds.task import WorldTask as WorldTask
    from worldmtp.envs.worlds.turn_env import TextTurnEnv as TextTurnEnv
    from worldmtp.envs.wrappers.action_mask import VectorActionMask as VectorActionMask
    from worldmtp.envs.wrappers.autoreset import Autoreset as Autoreset
    from worldmtp.envs.wrappers.episode_recorder import VectorEpisodeRecorder as VectorEpisodeRecorder
    from worldmtp.envs.wrappers.episode_recorder import read_episodes as read_episodes
    from worldmtp.envs.wrappers.potential_shaping import VectorPotentialShaping as VectorPotentialShaping
    from worldmtp.envs.wrappers.views import VectorAttentionMask as VectorAttentionMask
    from worldmtp.envs.wrappers.views import VectorNumericInfos as VectorNumericInfos

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "checks": "check_text_env hack_probes",
        "config": "TextEnvConfig",
        "dataset": "draw_examples prompt_overlap split_of",
        "imagined": "ImaginedVectorEnv",
        "make": "make_text_vec",
        "registry": "env_id make_task register_task task_names",
        "rubric": "Rubric exact_match",
        "scoring": "Scorer",
        "single_env": "TextGenEnv",
        "task": "Example Score Task",
        "text_env": "TextVectorEnv",
        "tokenizer": "CharTokenizer Tokenizer TransformersTokenizer make_tokenizer",
        "vector_checks": "check_vector_env",
        "vector_env": "TextGenVectorEnv",
        "worlds.adapters": "from_gem from_gymnasium from_text_object from_textarena",
        "worlds.task": "WorldTask",
        "worlds.turn_env": "TextTurnEnv",
        "wrappers.action_mask": "VectorActionMask",
        "wrappers.autoreset": "Autoreset",
        "wrappers.episode_recorder": "VectorEpisodeRecorder read_episodes",
        "wrappers.potential_shaping": "VectorPotentialShaping",
        "wrappers.views": "VectorAttentionMask VectorNumericInfos",
    },
)

register_catalogue()
