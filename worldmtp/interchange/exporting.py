"""An ``MTPModel`` written in a published layout, for programs that read those.

The base is written by transformers and loads with ``AutoModelForCausalLM``; the heads stand beside it in a file of
their own, under exactly the layout's flat names, as loaders that find none of them drop them without a word. What the
layout has no room for is refused, field by field; the world heads are always left out, and the report says so. Files of
a tokenizer in the folder stay as they are.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from worldmtp.interchange.layouts import Layout, get_layout
from worldmtp.interchange.llama_names import params_from_config
from worldmtp.interchange.naming import publish, split_experts
from worldmtp.interchange.problems import raise_all
from worldmtp.interchange.tensors import CONFIG, PARAMS, PTH, append_shard
from worldmtp.model import MTPModel
from worldmtp.model.lora import has_lora

_LOG = logging.getLogger(__name__)

# Loaders that choose by architecture find the heads; transformers chooses by model_type and finds the trunk.
_ARCHITECTURES = {"mimo": "MiMoForCausalLM"}


@dataclass(frozen=True)
class ExportReport:
    """What was written, relative to the folder, and which of the model's weights were not."""

    files: tuple[str, ...]
    weights: tuple[str, ...]
    left_out: tuple[str, ...]


def export_checkpoint(model: MTPModel, directory: str | Path, layout: str) -> ExportReport:
    """Write base and heads in a published layout.

    Raises:
        LayoutError: the layout cannot express the model; every field in the way is named.
        FileExistsError: the folder has a checkpoint already.
        ValueError: no such layout.
    """
    form = get_layout(layout)
    raise_all(f"the {form.name} layout cannot hold this model", _obstacles(model, form))
    directory = Path(directory)
    taken = [path.name for path in directory.glob("*") if _is_checkpoint_file(path)]
    if taken:
        raise FileExistsError(f"{directory} has {sorted(taken)} already; choose an empty folder.")
    directory.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in directory.iterdir()}
    num_modules = model.config.depth - 1
    trunk = {name: tensor.detach() for name, tensor in model.trunk.state_dict().items()}
    heads = {name: tensor.detach() for name, tensor in model.heads.state_dict().items()}
    ours, theirs = publish(form, trunk, heads, num_modules, model.trunk.config)
    if form.is_original_llama:
        _write_llama(directory, ours | theirs, model)
    else:
        model.trunk.save_pretrained(directory, state_dict=split_experts(trunk))
        # Copies: one file must not hold two names for one memory.
        append_shard(directory, {name: tensor.clone() for name, tensor in theirs.items()})
        _complete_config(directory / CONFIG, form, num_modules)
    files = tuple(sorted({path.name for path in directory.iterdir()} - there))
    left_out = tuple(f"world_heads.{name}" for name in model.world_heads.state_dict())
    _LOG.info("the %s layout has no world heads: left out %s", form.name, ", ".join(left_out))
    return ExportReport(files, tuple(sorted(ours | theirs)), left_out)


def _is_checkpoint_file(path: Path) -> bool:
    return path.name in (CONFIG, PARAMS) or path.suffix in (".safetensors", ".pth")


def _write_llama(directory: Path, tensors: dict[str, torch.Tensor], model: MTPModel) -> None:
    params = params_from_config(model.trunk.config, model.config.depth)
    (directory / PARAMS).write_text(json.dumps(params, indent=2) + "\n")
    torch.save({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, directory / PTH)


def _complete_config(path: Path, form: Layout, num_modules: int) -> None:
    config: dict[str, Any] = json.loads(path.read_text())
    if form.count_key is not None:
        config[form.count_key] = num_modules
    if form.name in _ARCHITECTURES:
        config["architectures"] = [_ARCHITECTURES[form.name]]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _obstacles(model: MTPModel, form: Layout) -> list[str]:
    config, trunk_config = model.config, model.trunk.config.get_text_config()
    found = []
    if has_lora(model):
        found.append("trunk: it has adapters; call worldmtp.model.lora.merge_lora(model) first")
    if trunk_config.model_type not in form.trunk_types:
        found.append(
            f"trunk: {type(model.trunk).__name__} has model_type={trunk_config.model_type!r}, and the layout is for "
            f"{list(form.trunk_types)}"
        )
    if config.depth < 2:
        found.append(f"depth={config.depth}: there are no heads; save the trunk with save_pretrained")
    if form.max_modules is not None and config.depth - 1 > form.max_modules:
        found.append(f"depth={config.depth}: the layout holds depths up to {form.max_modules + 1}")
    wanted: dict[str, Any] = {
        "head": form.head,
        "head_block": "trunk",
        "share_depths": False,
        "stride": 1,
        "unembedding": "shared",
    }
    if form.head == "sequential":
        wanted |= {"concat_order": form.concat_order, "output_norm": "own"}
        if form.hidden_stage is not None:
            wanted["hidden_stage"] = form.hidden_stage
        if config.depth > 2:
            wanted["recycle_stage"] = "post_norm"
    else:
        wanted |= {"output_norm": "shared", "feature_layers": (trunk_config.num_hidden_layers - 2,)}
    found += [
        f"{name}={getattr(config, name)!r}: the layout means {value!r}"
        for name, value in wanted.items()
        if getattr(config, name) != value
    ]
    return found + _trunk_obstacles(trunk_config, form)


def _trunk_obstacles(config: PreTrainedConfig, form: Layout) -> list[str]:
    """Return what of a trunk of the right class the files cannot say."""
    if config.model_type not in form.trunk_types:
        return []
    if form.is_original_llama:
        width = config.hidden_size // config.num_attention_heads
        plain = {
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "hidden_act": "silu",
            "head_dim": width,
        }
        found = [
            f"trunk {name}={getattr(config, name)!r}: the layout means {value!r}"
            for name, value in plain.items()
            if getattr(config, name) != value
        ]
        if config.rope_parameters["rope_type"] != "default":
            found.append(f"trunk rope_type={config.rope_parameters['rope_type']!r}: the layout means 'default'")
        return found
    dense = getattr(config, "first_k_dense_replace", None)
    if dense is not None and dense >= config.num_hidden_layers:
        return [f"trunk first_k_dense_replace={dense}: the heads' layers are dense, and the layout's are sparse"]
    return []
