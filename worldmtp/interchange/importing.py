"""A published checkpoint with MTP heads as an ``MTPModel``.

Nothing is taken on trust: before any weight is copied, the file is compared with what trunk and heads of that config
would write, and weights that are missing, left over, of another shape or not finite are raised together. Then
transformers loads the trunk, with its own conversions, and the heads' weights are renamed.

World heads start fresh; no published layout has any. Left out: loading by parts, so the host's memory must hold the
checkpoint in the precision asked for.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from worldmtp.heads.block import resolve_head_block
from worldmtp.heads.registry import bind, make_head
from worldmtp.interchange.layouts import Layout, detect_layout, find_layout, get_layout
from worldmtp.interchange.llama_names import config_from_params, num_future_tokens
from worldmtp.interchange.naming import (
    EMBEDDING,
    LM_HEAD,
    OWN_UNEMBEDDING,
    comparable_names,
    publish,
    split_experts,
    take_apart,
    vision_names,
)
from worldmtp.interchange.probing import choose_spec, probe_spec
from worldmtp.interchange.problems import LayoutError, differences, not_finite, raise_all, shapes, whole_number
from worldmtp.interchange.tensors import (
    CONFIG,
    DEFAULT_BLOCK,
    PARAMS,
    dequantize_all,
    read_config,
    read_tensors,
    weight_names,
)
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig

_LOG = logging.getLogger(__name__)

# Model types that transformers does not know, and those that compute the same.
_TRUNK_TYPES = {"mimo": ("qwen2", "Qwen2ForCausalLM")}


def import_checkpoint(
    path: str | Path,
    layout: str | None = None,
    *,
    concat_order: str | None = None,
    hidden_stage: str | None = None,
    probe_ids: Int[Tensor, "batch time"] | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> MTPModel:
    """Return trunk and heads of a published checkpoint; K is its number of modules plus one.

    Concatenation order and hidden stage are, in this order, what the caller says, what ``probe_ids`` show, what the
    layout says. Eight-bit weights are dequantised.

    Args:
        path: a folder with ``config.json`` and safetensors, or ``params.json`` and ``consolidated.pth``.
        layout: one of ``available_layouts()``; recognised by the config if not given.
        concat_order: see ``MTPConfig``.
        hidden_stage: likewise.
        probe_ids: text of the kind the heads were trained on, to measure what is not said; see ``probe_spec``.
        dtype: of all weights; by default what the config says.
        generator: draws the world heads, which no checkpoint has.

    Raises:
        FileNotFoundError: no checkpoint there, or not all of it.
        LayoutError: weights are missing, left over, misshapen or not finite (all are named), a file is damaged, the
            config's number of modules is none, there are no heads, or order or stage are known from nowhere or could
            not be told apart.
        ValueError: no such layout, or none that fits the config.
    """
    directory = Path(path)
    raw = read_config(directory)
    form = detect_layout(raw) if layout is None else get_layout(layout)
    spec = _spec(form, concat_order, hidden_stage, probe_ids is not None)
    tensors = read_tensors(directory)
    dtype = dtype or _stored_dtype(raw, tensors)
    block = (raw.get("quantization_config") or {}).get("weight_block_size") or DEFAULT_BLOCK
    tensors, problems = dequantize_all(tensors, dtype, block)
    problems += not_finite(tensors)
    trunk_config = config_from_params(raw, tensors) if form.is_original_llama else _trunk_config(raw)

    with _initial_weights_ignored(), torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(trunk_config)
    trunk_config = empty.config
    num_modules, miscount = _num_modules(form, raw, tensors, trunk_config)
    config = MTPConfig(head=form.head, depth=num_modules + 1, head_block="trunk", **spec)
    tensors, more = _check(form, tensors, empty, config)
    raise_all(f"{directory} is not a whole {form.name} checkpoint", miscount + problems + more)

    trunk_weights, head_weights = take_apart(form, tensors, trunk_config)
    config.unembedding = _settle_unembedding(head_weights, trunk_weights, num_modules)
    trunk = _load_trunk(type(empty), trunk_config, trunk_weights, dtype)
    if (directory / GENERATION_CONFIG_NAME).is_file():
        trunk.generation_config = GenerationConfig.from_pretrained(directory)
    model = MTPModel.from_trunk(trunk, config, generator)
    model.heads.load_state_dict(head_weights)
    if probe_ids is not None:
        model = _probed(model, probe_ids, concat_order, hidden_stage)
    return model.eval()


def _spec(form: Layout, concat_order: str | None, hidden_stage: str | None, probing: bool) -> dict[str, Any]:
    """Return the order and stage as far as they are known before the weights are."""
    given = {"concat_order": concat_order, "hidden_stage": hidden_stage}
    if form.head != "sequential":
        if probing or any(given.values()):
            raise ValueError(f"the heads of a {form.name} checkpoint are {form.head}: they have no order or stage.")
        return {}
    known = {name: value or getattr(form, name) for name, value in given.items()}
    unknown = [name for name, value in known.items() if value is None]
    if unknown and not probing:
        raise LayoutError(
            f"{' and '.join(unknown)} of a {form.name} checkpoint cannot be told from its files, and the programs that "
            f"run it disagree; pass {'=, '.join(unknown)}=, or probe_ids= with text to measure it."
        )
    return {name: value for name, value in known.items() if value is not None}


def _stored_dtype(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> torch.dtype:
    nested = config.get("text_config") or {}
    named = config.get("dtype") or config.get("torch_dtype") or nested.get("dtype") or nested.get("torch_dtype")
    if isinstance(named, str):
        dtype = getattr(torch, named, None)
        if not isinstance(dtype, torch.dtype):
            raise LayoutError(f"the config has dtype={named!r}, no dtype of torch; correct it.")
        return dtype
    floating = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point() and tensor.element_size() > 1]
    return max(set(floating), key=floating.count) if floating else torch.get_default_dtype()


def _trunk_config(raw: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the trunk's config: no remote code, no quantisation, and a model type that transformers knows."""
    config = {name: value for name, value in raw.items() if name not in ("auto_map", "quantization_config")}
    if "model_type" not in config:
        raise LayoutError("config.json has no 'model_type'; add the trunk's.")
    if config["model_type"] in _TRUNK_TYPES:
        config["model_type"], architecture = _TRUNK_TYPES[config["model_type"]]
        config["architectures"] = [architecture]
    made: PreTrainedConfig = AutoConfig.for_model(**config)
    return made


def layout_with_heads(path: str | Path) -> Layout | None:
    """Return the layout of a published checkpoint that has weights of MTP heads; None for any other directory.

    Raises:
        LayoutError: a file is damaged.
    """
    directory = Path(path)
    if not any((directory / name).is_file() for name in (CONFIG, PARAMS)):
        return None
    raw = read_config(directory)
    form = find_layout(raw)
    if form is None or form.is_original_llama:
        return form
    num_layers = _trunk_config(raw).get_text_config().num_hidden_layers
    return form if any(form.module_of(name, num_layers) is not None for name in weight_names(directory)) else None


def _num_modules(
    form: Layout, raw: Mapping[str, Any], tensors: Mapping[str, Tensor], config: PreTrainedConfig
) -> tuple[int, list[str]]:
    """Return the config's number, so that what the file lacks is named; the file's where the config is silent.

    The second is how the two differ.
    """
    num_layers = config.get_text_config().num_hidden_layers
    found = {module for module in (form.module_of(name, num_layers) for name in tensors) if module is not None}
    said = num_future_tokens(raw) - 1 if form.is_original_llama else None
    if form.count_key is not None:
        written = raw.get(form.count_key, (raw.get("text_config") or {}).get(form.count_key))
        said = None if written is None else whole_number(form.count_key, written)
    number = len(found) if said is None else said
    if number < 1:
        has = f"{len(found)} modules' weights" if found else "no weights of any"
        raise LayoutError(
            f"the checkpoint has no MTP heads by its config ({form.count_key or 'no key'}={said}), and {has}; load a "
            "plain trunk with AutoModelForCausalLM and add heads with MTPModel.from_trunk."
        )
    if form.max_modules is not None and number > form.max_modules:
        raise LayoutError(
            f"the checkpoint has {number} modules, and in the {form.name} layout they share one projection and norm, "
            f"which no family of heads does; at most {form.max_modules} can be read."
        )
    key = "n_future_tokens - 1" if form.is_original_llama else form.count_key
    differ = [f"count: the config has {key}={said}, and the files have weights of {len(found)} module(s)"]
    return number, differ if number != len(found) else []


def _check(
    form: Layout, tensors: dict[str, Tensor], trunk: PreTrainedModel, config: MTPConfig
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights that count, and all that is wrong with them, by the file's names."""
    bound = bind(config, trunk.config, resolve_head_block(config.head_block, trunk))
    with _initial_weights_ignored(), torch.device("meta"):
        heads: nn.Module = make_head(bound, trunk)
    num_modules, num_layers = config.depth - 1, trunk.config.get_text_config().num_hidden_layers
    ours, theirs = publish(form, trunk.state_dict(), heads.state_dict(), num_modules, trunk.config)
    wanted = shapes(ours) | shapes(theirs)

    names = comparable_names(list(tensors))
    vision = vision_names(list(tensors))
    if vision:
        _LOG.info("left out %d weights of a vision tower, such as %s", len(vision), vision[0])
    plain = {name: tensors[original] for name, original in names.items()}
    embedding = plain.get(EMBEDDING)
    copies = [form.copy_of_embedding(module, num_layers) for module in range(num_modules)]
    problems = []
    if trunk.config.get_text_config().tie_word_embeddings:
        copies.append(LM_HEAD)
    for name in copies:
        if name is None or name not in wanted:
            continue
        if name not in plain:
            del wanted[name]
        elif embedding is not None and not torch.equal(plain[name], embedding):
            problems.append(f"differs: {name} is to be a copy of {EMBEDDING}, which all depths read, and is not")
    if form.holds_unembedding:
        unembeddings = [form.theirs(OWN_UNEMBEDDING.format(module=m), num_layers) for m in range(num_modules)]
        if not any(name in plain for name in unembeddings):
            wanted = {name: shape for name, shape in wanted.items() if name not in unembeddings}
    problems += differences(wanted, shapes(split_experts(plain)))
    return {original: tensors[original] for original in names.values()}, problems


def _settle_unembedding(heads: dict[str, Tensor], trunk: Mapping[str, Tensor], num_modules: int) -> str:
    """Return whether heads have output layers of their own; take copies of the trunk's out of ``heads``."""
    names = [OWN_UNEMBEDDING.format(module=module) for module in range(num_modules)]
    present = [name for name in names if name in heads]
    lm_head = trunk.get(LM_HEAD, trunk.get(EMBEDDING))
    if any(lm_head is None or not torch.equal(heads[name], lm_head) for name in present):
        return "own"
    for name in present:
        del heads[name]
    return "shared"


def _load_trunk(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, weights: dict[str, Tensor], dtype: torch.dtype
) -> PreTrainedModel:
    """Return the causal LM.

    Raises:
        LayoutError: transformers would have other weights than those checked here.
    """
    with _initial_weights_ignored():
        loaded: Any = model_class.from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    trunk, info = loaded
    found = [f"{what}: {name}" for what, names in info.items() for name in names]
    raise_all("transformers does not take the trunk's weights", found)
    assert isinstance(trunk, PreTrainedModel)
    return trunk


@contextmanager
def _initial_weights_ignored() -> Iterator[None]:
    """Restore the global state afterwards: modules draw initial weights from it, some of them on any device."""
    with torch.random.fork_rng(devices=[]):
        yield


def _probed(model: MTPModel, input_ids: Tensor, concat_order: str | None, hidden_stage: str | None) -> MTPModel:
    """Return the model with the order and stage under which its heads agree with its trunk."""
    chosen = choose_spec(probe_spec(model, input_ids), concat_order, hidden_stage)
    config = model.config.to_dict() | {"concat_order": chosen.concat_order, "hidden_stage": chosen.hidden_stage}
    drawn = torch.Generator().manual_seed(0)  # whatever it gives is overwritten at once
    probed = MTPModel.from_trunk(model.trunk, MTPConfig.from_dict(config), drawn)
    probed.heads.load_state_dict(model.heads.state_dict())
    probed.world_heads.load_state_dict(model.world_heads.state_dict())
    return probed
