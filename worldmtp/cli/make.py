"""Environment, trunk and model of a training config."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from worldmtp.cli.schema import EnvConfig, ModelConfig, ProfileConfig
from worldmtp.config import MTPConfig
from worldmtp.envs import TextGenVectorEnv, Tokenizer
from worldmtp.model import MTPModel


def import_user_modules(modules: Sequence[str]) -> None:
    """Import modules and ``./files.py`` whose environments register themselves; the current directory is searched.

    Raises:
        ValueError: a module or a file cannot be imported.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    for name in modules:
        module = name
        if name.endswith(".py"):
            path = Path(name).resolve()
            sys.path.insert(0, str(path.parent))
            module = path.stem
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"imports={name!r} cannot be imported: {error}. Give a module on the path or a file as ./my_envs.py."
            ) from error


def make_env(config: EnvConfig, num_envs: int) -> TextGenVectorEnv:
    """A batch-synchronous vector environment of ``num_envs`` rows.

    Raises:
        ValueError: the id is unknown (gymnasium's message names the nearest), or is no text environment.
    """
    try:
        env = gymnasium.make_vec(config.id, num_envs=num_envs, autoreset_mode="disabled", **config.kwargs)
    except gymnasium.error.Error as error:
        raise ValueError(f"env.id={config.id!r} cannot be made: {error}") from error
    if not isinstance(env.unwrapped, TextGenVectorEnv):
        raise ValueError(
            f"env.id={config.id!r} makes a {type(env.unwrapped).__name__}; training needs a TextGenVectorEnv, which "
            "worldmtp.register_task makes of any task."
        )
    return env.unwrapped


_ARCHITECTURES = ("llama", "qwen3", "gpt2", "gpt_neox")


def make_trunk(config: ModelConfig, tokenizer: Tokenizer, context: int, generator: torch.Generator) -> PreTrainedModel:
    """The causal LM: from ``path``, or fresh from a transformers config.

    Raises:
        ValueError: neither or both are given, or the vocabulary or the context is too small for the environment.
    """
    if (config.path is None) == (config.architecture is None):
        raise ValueError(
            f"model.path={config.path!r} and model.architecture={config.architecture!r}: give exactly one of them."
        )
    if config.path is not None:
        if not Path(config.path).is_dir():
            raise ValueError(f"model.path={config.path!r} is not a directory; give one written by save_pretrained.")
        trunk: PreTrainedModel = AutoModelForCausalLM.from_pretrained(config.path)
    else:
        trunk = _fresh_trunk(config, tokenizer, context, generator)
    known, vocab_size = trunk.config.get_text_config().vocab_size, tokenizer.vocab_size
    if vocab_size > known:
        raise ValueError(
            f"the environment's tokenizer has {vocab_size} ids and the model a vocabulary of {known}; resize the "
            "model's embeddings or give the environment the model's own tokenizer (env.kwargs.tokenizer)."
        )
    limit = getattr(trunk.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and context > limit:
        raise ValueError(
            f"the environment's texts have up to {context} tokens and the model a context of {limit}; lower "
            "env.kwargs.max_prompt or max_new."
        )
    return trunk


def _fresh_trunk(
    config: ModelConfig, tokenizer: Tokenizer, context: int, generator: torch.Generator
) -> PreTrainedModel:
    values: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "max_position_embeddings": context,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    trunk_config = AutoConfig.for_model(config.architecture or "", **{**values, **config.config})
    # Hugging Face draws initial weights from the global state; it is lent a seed and restored.
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return AutoModelForCausalLM.from_config(trunk_config)


def make_model(config: ModelConfig, env: TextGenVectorEnv, seed: int, reward_range: tuple[float, float]) -> MTPModel:
    """The trunk with fresh heads, for the environment's vocabulary and lengths."""
    generator = torch.Generator().manual_seed(seed)
    context = env.problem.max_prompt + env.problem.max_new
    trunk = make_trunk(config, env.tokenizer, context, generator)
    heads = MTPConfig(
        depth=config.depth,
        share_depths=config.share_depths,
        num_value_bins=config.num_value_bins,
        value_range=reward_range,
        reward_range=reward_range,
    )
    return MTPModel.from_trunk(trunk, heads, generator)


def on_device(model: MTPModel, profile: ProfileConfig) -> MTPModel:
    """The model on the profile's device, in evaluation mode: no dropout while acting or reading.

    Raises:
        ValueError: there is no such device.
    """
    device = torch.device(profile.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"profile.device={profile.device!r}, and torch sees no CUDA device; use profile=cpu.")
    torch.nn.Module.to(model, device)
    return model.eval()


def vocabulary(env: TextGenVectorEnv) -> tuple[str, ...]:
    """The text of every token id."""
    special: Mapping[int, str] = {env.tokenizer.pad_id: "<pad>", env.tokenizer.eos_id: "<eos>"}
    return tuple(special.get(i) or env.tokenizer.decode([i]) for i in range(env.tokenizer.vocab_size))
