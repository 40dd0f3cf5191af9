"""Low-rank adapters in the trunk, heads trained in full beside them (LoRA, Hu et al. 2021, arXiv 2106.09685).

    W x  becomes  W x + (alpha / r) B A x          W frozen, A and B trained

Adapters are PEFT's and stand in the trunk alone; a head's own copy of a decoder layer is trained as it is. The LM head,
the embedding and what the heads share with the trunk stay plain: the fused losses read weight and bias of an output
layer. What ``save_lora`` writes is small: adapters in PEFT's format, heads, world heads and ``MTPConfig``, without the
trunk. ``MTPModel.save_pretrained`` writes the trunk with them: a checkpoint that loads by itself, and that any trainer
of Hugging Face's resumes from.

Left out: several adapters at once, PEFT's other methods, and the options of ``LoraConfig`` that train more of the trunk
than matrices beside its layers.
"""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from worldmtp.model.adapters import (
    adapted_layers,
    adapter_name,
    check_lora_config,
    inject_adapter,
    remove_adapters,
    require_peft,
)
from worldmtp.model.config import MTPConfig
from worldmtp.model.global_draws import global_draws_from
from worldmtp.model.model import MTPModel

if TYPE_CHECKING:
    from peft import LoraConfig

CONFIG_FILE = "config.json"
HEADS_FILE = "heads.safetensors"
ADAPTER_FOLDER = "adapter"
ADAPTER_FILE = "adapter_model.safetensors"
_FILES = (CONFIG_FILE, HEADS_FILE, f"{ADAPTER_FOLDER}/adapter_config.json", f"{ADAPTER_FOLDER}/{ADAPTER_FILE}")

_PEFT_PREFIX = "base_model.model."
"""What PEFT's own wrapper would put before the names; its format has it."""


def add_lora(model: nn.Module, config: "LoraConfig", generator: torch.Generator | None = None) -> MTPModel:
    """Put fresh adapters into the model's trunk, whose own weights are frozen; all heads stay trainable.

    The adapters change nothing until they are trained, as B starts at zero unless the config says otherwise; A is drawn
    from ``generator``, or from torch's global state as PEFT does. They have the dtype of the layers they stand beside.
    Optimisers and trainers are made afterwards.

    Raises:
        ImportError: PEFT is not installed.
        TypeError: the model or the config is something else.
        ValueError: the trunk has adapters already, the config reaches beyond matrices beside the trunk's layers, or it
            names no layer.
    """
    if not isinstance(model, MTPModel):
        raise TypeError(
            f"model is a {type(model).__name__}, expected an MTPModel; make one with MTPModel.from_trunk(trunk, "
            "MTPConfig(depth=...)) from a trunk without PEFT's wrapper."
        )
    check_lora_config(config)
    if has_lora(model):
        raise ValueError("the trunk has adapters already; call merge_lora(model) first to add others.")
    with global_draws_from(generator):
        inject_adapter(model.trunk, copy.deepcopy(config))
    return model


def has_lora(model: MTPModel) -> bool:
    """Return whether there are adapters in the trunk, however they came there."""
    return hasattr(model.trunk, "peft_config")


def save_lora(model: MTPModel, directory: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
    """Write adapters, heads, world heads and the heads' config into ``directory``; the trunk's own weights are not.

    ``state_dict`` is the model's, where it had to be gathered (sharded training). The folder ``adapter`` is PEFT's:
    ``PeftModel.from_pretrained(trunk, directory / "adapter")`` reads it too. It stands apart from ``config.json``, as
    Hugging Face's loaders would go by it and look for the trunk elsewhere.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: there are no adapters, or several.
    """
    name = adapter_name(model.trunk)
    peft = require_peft()
    state = model.state_dict() if state_dict is None else state_dict
    trunk_state = {key.removeprefix("trunk."): value for key, value in state.items() if key.startswith("trunk.")}
    adapter = peft.get_peft_model_state_dict(
        model.trunk, state_dict=trunk_state, adapter_name=name, save_embedding_layers=False
    )
    heads = {key: value for key, value in state.items() if key.startswith(("heads.", "world_heads."))}
    folder = Path(directory) / ADAPTER_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    model.config.to_json_file(folder.parent / CONFIG_FILE)
    model.trunk.peft_config[name].save_pretrained(str(folder))
    _write({_PEFT_PREFIX + key: value for key, value in adapter.items()}, folder / ADAPTER_FILE)
    _write(heads, folder.parent / HEADS_FILE)


def load_lora(trunk: PreTrainedModel, directory: str | Path) -> MTPModel:
    """Load what ``save_lora`` wrote onto ``trunk``, which must be the one it was trained on; training may go on.

    Raises:
        ImportError: PEFT is not installed.
        FileNotFoundError: the directory is not one of ``save_lora``.
        ValueError: the trunk has another shape, or a weight is missing, left over or of another shape.
    """
    directory = Path(directory)
    peft = require_peft()
    _check_files(directory)
    config = MTPConfig.from_json_file(directory / CONFIG_FILE)
    _check_trunk(trunk, config, directory)
    # Whatever is drawn here is overwritten at once.
    drawn = torch.Generator().manual_seed(0)
    model = MTPModel.from_trunk(trunk, config, drawn)
    add_lora(model, peft.LoraConfig.from_pretrained(str(directory / ADAPTER_FOLDER)), drawn)
    load_lora_weights(model, directory)
    return model


def load_lora_weights(model: MTPModel, directory: str | Path) -> None:
    """Take over the adapters, heads and world heads that ``save_lora`` wrote, into a model that has such already.

    Raises:
        ImportError: PEFT is not installed.
        FileNotFoundError: the directory is not one of ``save_lora``.
        ValueError: the model has no adapters, or a weight is missing, left over or of another shape.
    """
    directory = Path(directory)
    name = adapter_name(model.trunk)
    peft = require_peft()
    _check_files(directory)
    adapter = load_file(directory / ADAPTER_FOLDER / ADAPTER_FILE)
    heads = load_file(directory / HEADS_FILE)
    own = model.state_dict()
    _check_names(heads, {k: v for k, v in own.items() if k.startswith(("heads.", "world_heads."))}, directory)
    adapter = {key.removeprefix(_PEFT_PREFIX): value for key, value in adapter.items()}
    expected = peft.get_peft_model_state_dict(model.trunk, adapter_name=name, save_embedding_layers=False)
    _check_names(adapter, expected, directory)
    model.load_state_dict(heads, strict=False)
    peft.set_peft_model_state_dict(model.trunk, adapter, adapter_name=name)


def merge_lora(model: MTPModel) -> MTPModel:
    """Make W + (alpha / r) B A the trunk's weights, without adapters; all of the model is trainable again.

    It is a plain model from here on: ``save_pretrained`` and every export take it.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: there are no adapters, or several, or merging would make a weight that is not finite.
    """
    adapter_name(model.trunk)
    require_peft()
    for layer in adapted_layers(model.trunk).values():
        layer.merge(safe_merge=True)
    remove_adapters(model.trunk)
    model.config.adapters = None
    model.trunk.requires_grad_(True)
    return model


def _check_trunk(trunk: PreTrainedModel, config: MTPConfig, directory: Path) -> None:
    assert config.trunk_config is not None  # save_lora writes a bound config
    names = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")
    ours, theirs = config.trunk_config.get_text_config(), trunk.config.get_text_config()
    differing = [
        f"{name}={getattr(theirs, name)!r}, expected {getattr(ours, name)!r}"
        for name in names
        if getattr(theirs, name) != getattr(ours, name)
    ]
    if differing:
        raise ValueError(f"the trunk is not the one of {directory}: {'; '.join(differing)}.")


def _check_files(directory: Path) -> None:
    missing = [name for name in _FILES if not (directory / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{directory} is not a directory of save_lora: {', '.join(missing)} missing. A checkpoint with its trunk "
            "is loaded by MTPModel.from_pretrained."
        )


def _check_names(got: dict[str, Tensor], expected: dict[str, Tensor], directory: Path) -> None:
    problems = [f"missing: {name}" for name in sorted(expected.keys() - got.keys())]
    problems += [f"unexpected: {name}" for name in sorted(got.keys() - expected.keys())]
    problems += [
        f"shape: {name} is {tuple(got[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(got.keys() & expected.keys())
        if got[name].shape != expected[name].shape
    ]
    if problems:
        raise ValueError(
            f"the weights in {directory} do not fit this model, {len(problems)} problem(s): {problems[:3]}."
        )


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})
