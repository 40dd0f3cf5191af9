"""The decoder layer inside a head: the trunk's own class where its interface allows, otherwise a Llama layer.

A layer serves when it is called as Llama's is (hidden states, mask, position embeddings, cache) and the trunk has one
rotary embedding for all layers; Llama, Mistral, Qwen2, Qwen3 and their like do. GPT-2 has learned positions and
GPT-NeoX its own calling convention: they get a Llama layer of their width and number of heads, with its own rotary
embedding. What is chosen depends on the trunk's class and config alone, so a checkpoint is rebuilt from its config.
"""

import copy
import inspect
from dataclasses import dataclass

from torch import nn
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

_LAYER_ARGUMENTS = {"hidden_states", "attention_mask", "position_ids", "past_key_values", "position_embeddings"}


@dataclass(frozen=True)
class BlockSpec:
    """How to make decoder layers that stand alone: each is layer 0 of its own one-layer config."""

    layer_class: type[nn.Module]
    rotary_class: type[nn.Module]
    config: PreTrainedConfig

    def make_layer(self) -> nn.Module:
        """A fresh layer; its cache index is 0."""
        return self.layer_class(self.config, 0)

    def make_rotary(self) -> nn.Module:
        """Position embeddings for the layers; it has no weights."""
        return self.rotary_class(self.config)


def resolve_head_block(head_block: str, trunk: PreTrainedModel) -> str:
    """``"trunk"`` or ``"llama"``; ``"auto"`` is whichever serves.

    Raises:
        ValueError: the trunk's layer was asked for and cannot serve.
    """
    serves = _trunk_layer_serves(trunk)
    if head_block == "trunk" and not serves:
        raise ValueError(
            f"head_block='trunk' needs decoder layers with Llama's interface, and those of {type(trunk).__name__} have "
            "another; use head_block='llama' or 'auto'."
        )
    if head_block == "auto":
        return "trunk" if serves else "llama"
    return head_block


def make_block_spec(head_block: str, trunk: PreTrainedModel) -> BlockSpec:
    """What the heads' decoder layers are made of."""
    if head_block == "trunk":
        spec = BlockSpec(*_trunk_classes(trunk), _one_layer_config(trunk.config))
    else:
        spec = BlockSpec(LlamaDecoderLayer, LlamaRotaryEmbedding, _llama_config(trunk.config))
    # Heads get explicit four-dimensional masks, which flash kernels do not take.
    eager = trunk.config._attn_implementation == "eager"
    spec.config._attn_implementation = "eager" if eager else "sdpa"
    return spec


def _trunk_layer_serves(trunk: PreTrainedModel) -> bool:
    backbone = trunk.base_model
    if not hasattr(backbone, "layers") or not hasattr(backbone, "rotary_emb"):
        return False
    layer_types = getattr(trunk.config, "layer_types", None) or ["full_attention"]
    if set(layer_types) - {"full_attention", "sliding_attention"}:
        return False
    layer, rotary = (inspect.signature(part.forward).parameters for part in _trunk_classes(trunk))
    return set(layer) >= _LAYER_ARGUMENTS and list(rotary) == ["self", "x", "position_ids"]


def _trunk_classes(trunk: PreTrainedModel) -> tuple[type[nn.Module], type[nn.Module]]:
    layers, rotary = trunk.base_model.get_submodule("layers"), trunk.base_model.get_submodule("rotary_emb")
    return type(list(layers.children())[-1]), type(rotary)


def _one_layer_config(trunk_config: PreTrainedConfig) -> PreTrainedConfig:
    config = copy.deepcopy(trunk_config)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = ["full_attention"]
    config.num_hidden_layers = 1
    return config


def _llama_config(trunk_config: PreTrainedConfig) -> LlamaConfig:
    hidden_size, num_heads = trunk_config.hidden_size, trunk_config.num_attention_heads
    if hidden_size % (2 * num_heads):
        raise ValueError(
            f"head_block='llama' needs an even number of channels per attention head, and hidden_size={hidden_size} "
            f"over num_attention_heads={num_heads} gives {hidden_size / num_heads:g}; choose another trunk."
        )
    inner_size = getattr(trunk_config, "intermediate_size", None) or getattr(trunk_config, "n_inner", None)
    return LlamaConfig(
        vocab_size=trunk_config.vocab_size,
        hidden_size=hidden_size,
        intermediate_size=inner_size or 4 * hidden_size,
        num_hidden_layers=1,
        num_attention_heads=num_heads,
        max_position_embeddings=trunk_config.max_position_embeddings,
    )
