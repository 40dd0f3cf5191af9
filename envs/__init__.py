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
    from worldmtp.envs.registry import env_id, make_task, task_names
    from worldmtp.envs.scoring import Scorer
    from worldmtp.envs.single import TextGenEnv
    from worldmtp.envs.splits import draw_examples, prompt_overlap, split_of
    from worldmtp.envs.task import Example, Score, Task
    from worldmtp.envs.tokenizer import CharTokenizer, Tokenizer, TransformersTokenizer, make_tokenizer
    from worldmtp.envs.vector import TextGenVectorEnv
    from worldmtp.envs.vector_checks import check_vector_env

_MODULE_OF = {
    "CharTokenizer": "tokenizer",
    "Example": "task",
    "ImaginedVectorEnv": "imagined",
    "Score": "task",
    "Scorer": "scoring",
    "Task": "task",
    "TextGenEnv": "single",
    "TextGenVectorEnv": "vector",
    "Tokenizer": "tokenizer",
    "TransformersTokenizer": "tokenizer",
    "check_text_env": "checks",
    "check_vector_env": "vector_checks",
    "draw_examples": "splits",
    "env_id": "registry",
    "hack_probes": "checks",
    "make_task": "registry",
    "make_tokenizer": "tokenizer",
    "prompt_overlap": "splits",
    "split_of": "splits",
    "task_names": "registry",
}

__all__ = [
    "CharTokenizer",
    "Example",
    "ImaginedVectorEnv",
    "Score",
    "Scorer",
    "Task",
    "TextGenEnv",
    "TextGenVectorEnv",
    "Tokenizer",
    "TransformersTokenizer",
    "check_text_env",
    "check_vector_env",
    "draw_examples",
    "env_id",
    "hack_probes",
    "make_task",
    "make_tokenizer",
    "prompt_overlap",
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
