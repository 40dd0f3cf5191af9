"""Environment, trunk and model of a training config, and whether they fit each other."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from worldmtp.agents.config import ImaginationConfig, PPOConfig
from worldmtp.agents.imagination.completions import completions_of
from worldmtp.agents.imagination.episodes import check_real_observations
from worldmtp.agents.imagination.imagined_returns import Acting
from worldmtp.agents.imagination.known_replies import SEARCH_SETTING, check_replies_backend
from worldmtp.choices import did_you_mean, env_settings
from worldmtp.dynamics import check_action_conditional, check_backend, make_world_model
from worldmtp.envs import Example, TextVectorEnv, Tokenizer
from worldmtp.envs.make import MakingError, make_text_vec
from worldmtp.envs.scoring import Scorer
from worldmtp.envs.task import TurnTask
from worldmtp.envs.text_env import unrecorded
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.model.global_draws import global_draws_from
from worldmtp.objective import MTPObjective
from worldmtp.objective.plan import Progress
from worldmtp.training.config import EnvConfig, ModelConfig, ProfileConfig, TrainConfig
from worldmtp.training.saved_model import (
    check_vocabulary,
    holds_heads,
    holds_mtp_model,
    load_causal_lm,
    load_with_heads,
)

_SCORED = 4
"""Demonstrations whose scores are looked at before the warm start."""


def make_env(config: EnvConfig, num_envs: int, records: bool = False) -> TextVectorEnv:
    """Return a batch-synchronous vector environment of ``num_envs`` rows.

    Wrappers that write episodes into a file are left out unless ``records`` is set, for the rows that train: one may
    write to it.

    Raises:
        ValueError: the id or a wrapper is unknown (the message names the nearest), its module cannot be imported, or it
            is no text environment.
    """
    try:
        wrappers = config.wrappers if records else unrecorded(config.wrappers)
        return make_text_vec(config.id, num_envs, wrappers=wrappers, **config.kwargs)
    except MakingError as error:
        raise ValueError(f"env.id={error}") from error


def make_trunk(config: ModelConfig, tokenizer: Tokenizer, context: int, generator: torch.Generator) -> PreTrainedModel:
    """Return the causal LM, its weights in float32: from ``path``, or fresh from a transformers config.

    Raises:
        ValueError: neither or both are given, or what is given does not exist.
    """
    if (config.path is None) == (config.architecture is None):
        raise ValueError(
            f"model.path={config.path!r} and model.architecture={config.architecture!r}: give exactly one of them."
        )
    if config.architecture is not None:
        return _fresh_trunk(config.architecture, config.config, tokenizer, context, generator)
    path = str(config.path)
    if not Path(path).is_dir():
        raise ValueError(
            f"model.path={path!r} is not a directory; give one written by save_pretrained. Nothing is downloaded here: "
            f"fetch a model of the hub first, as by hf download {path} --local-dir checkpoint."
        )
    return load_causal_lm(path, dtype=torch.float32)


def _fresh_trunk(
    architecture: str, given: Mapping[str, Any], tokenizer: Tokenizer, context: int, generator: torch.Generator
) -> PreTrainedModel:
    if architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"model.architecture={architecture!r} is no causal LM of transformers"
            f"{did_you_mean(architecture, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}"
        )
    known = AutoConfig.for_model(architecture)
    for name in given:
        if not hasattr(known, name):
            raise ValueError(
                f"model.config.{name} is no field of {type(known).__name__}{did_you_mean(name, dir(known))}"
            )
    values: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "max_position_embeddings": context,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    trunk_config = AutoConfig.for_model(architecture, **{**values, **given})
    heads, shared = (getattr(trunk_config, f"num_{name}_heads", None) for name in ("attention", "key_value"))
    if heads is not None and shared is not None and (shared < 1 or heads % shared):
        raise ValueError(
            f"model.config.num_attention_heads={heads} must be a multiple of model.config.num_key_value_heads="
            f"{shared}, since that many heads of queries share one of keys and values; set both."
        )
    with global_draws_from(generator):
        return AutoModelForCausalLM.from_config(trunk_config, dtype=torch.float32)


def make_model(config: ModelConfig, env: TextVectorEnv, seed: int) -> MTPModel:
    """Return the trunk with fresh heads, for the environment's vocabulary and lengths, or a model with its own heads.

    Raises:
        ValueError: no such family of heads (the nearest is suggested), or one that cannot be had that way; or a saved
            model cannot be read, or its tokenizer gives other meanings to the environment's ids.
    """
    if config.architecture is None and config.path is not None:
        check_vocabulary(Path(config.path), env.tokenizer, "model.path")
    generator = torch.Generator().manual_seed(seed)
    if brings_heads(config):
        return load_with_heads(Path(str(config.path)), generator, f"Give another model.path than {config.path!r}.")
    context = env.dataset.max_prompt + env.dataset.max_new
    trunk = make_trunk(config, env.tokenizer, context, generator)
    bins: dict[str, Any] = {} if config.num_value_bins is None else {"num_value_bins": config.num_value_bins}
    spec = config.head_spec.given()
    try:
        heads = MTPConfig(head=config.head, depth=config.depth, **bins, **spec)
        return MTPModel.from_trunk(trunk, heads, generator)
    except ValueError as error:
        raise ValueError(f"model.head={config.head} with model.head_spec={spec}: {error}") from error


def model_notes(config: ModelConfig, model: MTPModel, is_warm: bool) -> list[str]:
    """Return what a user should know of a checkpoint: that it brings heads of its own."""
    if is_warm or not brings_heads(config):
        return []
    path, heads = config.path, model.config
    kind = "a saved MTPModel" if holds_mtp_model(Path(str(path))) else "a published checkpoint"
    return [
        f"model.path={path}: {kind}, taken with its own heads (head={heads.head}, depth={heads.depth}); model.head, "
        "model.depth, model.head_spec and model.num_value_bins say nothing here.",
    ]


def brings_heads(config: ModelConfig) -> bool:
    """Return whether ``path`` holds a saved MTPModel or a release with MTP heads, which are taken as they are.

    Raises:
        ValueError: a file of a release is damaged.
    """
    return config.architecture is None and config.path is not None and holds_heads(Path(config.path))


def check_fits(config: MTPConfig, env: TextVectorEnv) -> None:
    """Raise unless a model has the environment's tokens and lengths, and reads it token by token.

    Raises:
        ValueError: the model's vocabulary is smaller than the tokenizer's, its context than the texts, or its depths
            leap.
    """
    if config.stride != 1:
        raise ValueError(
            f"model.head_spec.stride={config.stride}: depth 2 foresees token t + {config.offsets[1]}, and what is "
            "imagined and evaluated goes token by token; set it to 1. Strides are for MTPSFTTrainer and for studies."
        )
    text_config = config.get_text_config()
    if env.tokenizer.vocab_size > text_config.vocab_size:
        raise ValueError(
            f"the environment's tokenizer has {env.tokenizer.vocab_size} ids and the model a vocabulary of "
            f"{text_config.vocab_size}; resize the model's embeddings or give the environment the model's own "
            f"tokenizer: {env_settings({'tokenizer': 'transformers:<directory of the model>'})}."
        )
    context = env.dataset.max_prompt + env.dataset.max_new
    limit = getattr(text_config, "max_position_embeddings", None)
    if limit is not None and context > limit:
        room = limit - env.dataset.max_prompt
        told = f"max_new, as by {env_settings({'max_new': room})}" if room > 1 else "max_prompt, with shorter prompts"
        raise ValueError(
            f"the environment's texts have up to {context} tokens, max_prompt={env.dataset.max_prompt} and max_new="
            f"{env.dataset.max_new}, and the model a context of {limit}; lower {told}."
        )


def check_scores(env: TextVectorEnv, examples: Sequence[Example], value_range: tuple[float, float]) -> None:
    """Raise if an example's own answer is paid what the model's values cannot hold, before it is trained on such.

    A few are scored, in this process, so not where a time limit says that scoring may hang. A scorer that raises is
    told of when answers are paid.

    Raises:
        ValueError: one is; the message has the answer and what it is paid.
    """
    if env.dataset.config.timeout_seconds is not None or isinstance(env.task, TurnTask):
        return
    low, high = value_range
    asked = [(one, one.answer, np.array(env.tokenizer.encode(one.answer))) for one in examples[:_SCORED] if one.answer]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        scores = Scorer(env.task).score_batch(asked)
    for (example, answer, _), score in zip(asked, scores, strict=True):
        if not low <= score.value <= high:
            raise ValueError(
                f"the answer {answer!r} to {example.prompt!r} is scored {score.value:g}, and the model's values hold "
                f"returns of {low:g} .. {high:g} (value_range); scale the task's score, as by dividing it by its "
                "largest."
            )


def check_objective(objective: MTPObjective, num_depths: int) -> None:
    """Raise if the warm start's objective does not fit the model, before anything is trained.

    Raises:
        ValueError: its window reaches beyond the model's depths.
    """
    try:
        objective.plan(num_depths, Progress(step=0, max_steps=1), seed=0)
    except ValueError as error:
        raise ValueError(f"objective: {error}") from error


def check_imagination(model: MTPModel, backend: str, imagination: ImaginationConfig, ppo: PPOConfig) -> bool:
    """Return whether the heads of ``model`` can imagine what is asked; raise if they must and cannot.

    ``episodes`` asks a model of replies and not the heads.

    Raises:
        ValueError: there is no such back-end; or imagination is on, and these heads cannot have it, it cannot go that
            far, or it is blind to the actions that counterfactuals compare.
    """
    check_backend(backend)
    if imagination.use == "episodes":
        check_replies_backend(backend, "imagination=episodes")
        check_real_observations(ppo)
        return False
    if imagination.searches_replies:
        check_replies_backend(backend, SEARCH_SETTING)
        return False
    try:
        _check_imagination(model, backend, imagination)
    except ValueError:
        if imagination.use != "off":
            raise
        return False
    return True


def _check_imagination(model: MTPModel, backend: str, imagination: ImaginationConfig) -> None:
    horizon = imagination.horizon
    try:
        world_model = make_world_model(backend, model, torch.Generator())
        asks = imagination.use == "counterfactual" and imagination.max_rung > 0
        if asks or imagination.use in ("latent", "search"):
            check_action_conditional(world_model)
    except TypeError as error:
        raise ValueError(f"world_model={backend} with imagination={imagination.use}: {error}") from error
    limit = world_model.max_horizon
    if limit is not None and horizon > limit:
        raise ValueError(
            f"imagination.horizon={horizon} exceeds the {limit} steps that world_model={backend} can take with "
            f"model.depth={model.config.depth}; lower imagination.horizon, or raise model.depth to {horizon + 1}."
        )


def check_completions(model: MTPModel, env: TextVectorEnv, config: TrainConfig) -> None:
    """Raise if imagined answers are to be scored and cannot be, before anything is trained.

    Raises:
        ValueError: a score is paid for, or the world model cannot go to the end of an answer.
    """
    if config.imagination.use != "counterfactual":
        return
    generator, backend = torch.Generator(), config.world_model.backend
    acting = Acting.of(env, config.agent.rollout.temperature, model.config.value_range)
    try:
        completions_of(env, model, make_world_model(backend, model, generator), acting, config.imagination, generator)
    except TypeError as error:
        how = config.imagination.completions
        raise ValueError(f"world_model={backend} with imagination.completions={how}: {error}") from error


def on_device(model: MTPModel, profile: ProfileConfig) -> MTPModel:
    """Return the model on the profile's device, in evaluation mode: no dropout while acting or reading.

    Raises:
        ValueError: there is no such device.
    """
    device = checked_device(profile.device, "profile.device", "profile=cpu")
    torch.nn.Module.to(model, device)
    return model.eval()


def checked_device(name: str, option: str, remedy: str) -> torch.device:
    """Return the device of that name; a message calls it ``option`` and advises ``remedy``.

    Raises:
        ValueError: there is no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"{option}={name!r} is no device: {error}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{option}={name!r}, and torch sees no CUDA device; use {remedy}.")
    return device


def vocabulary(env: TextVectorEnv) -> tuple[str, ...]:
    """Return the text of every token id."""
    special: Mapping[int, str] = {env.tokenizer.pad_id: "<pad>", env.tokenizer.eos_id: "<eos>"}
    return tuple(special.get(i) or env.tokenizer.decode([i]) for i in range(env.tokenizer.vocab_size))
