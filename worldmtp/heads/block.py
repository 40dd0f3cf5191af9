"""The decoder layer inside a head: the trunk's own class where its interface allows, otherwise a Llama layer.

A layer serves when it is called as Llama's is (hidden states, mask, position embeddings, cache) and the trunk has one
rotary embedding for all layers; Llama, Mistral, Qwen2, Qwen3 and their like do. GPT-2 has learned positions and
GPT-NeoX its own calling convention: they get a Llama layer of their width and number of heads, with its own rotary
embedding. What is chosen depends on the trunk's class and config alone, so a checkpoint is rebuilt from its config.
"""

import copy
import inspect
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from worldmtp.model.trunk import backbone_of, final_norm, layer_list

NORM_EPS = 1e-6

PositionEmbeddings = tuple[Tensor, Tensor] | Tensor
"""What a rotary embedding gives to layers: cosines and sines, or both as complex numbers (Llama 4)."""
_LAYER_ARGUMENTS = {"hidden_states", "attention_mask", "position_ids", "past_key_values", "position_embeddings"}


@dataclass(frozen=True)
class BlockSpec:
    """How to make decoder layers that stand alone: each is layer 0 of its own one-layer config."""

    layer_class: type[nn.Module]
    rotary_class: type[nn.Module]
    config: PreTrainedConfig

    def make_layer(self) -> nn.Module:
        """Return a fresh layer; its cache index is 0."""
        return self.layer_class(self.config, 0)

    def make_rotary(self) -> nn.Module:
        """Return position embeddings for the layers; it has no weights."""
        return self.rotary_class(self.config)


def resolve_head_block(head_block: str, trunk: PreTrainedModel) -> str:
    """Return ``"trunk"`` or ``"llama"``; ``"auto"`` is whichever serves.

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
    """Return what the heads' decoder layers are made of."""
    if head_block == "trunk":
        spec = BlockSpec(*_trunk_classes(trunk), _one_layer_config(trunk.config.get_text_config()))
    else:
        spec = BlockSpec(LlamaDecoderLayer, LlamaRotaryEmbedding, _llama_config(trunk.config.get_text_config()))
    # Heads get explicit four-dimensional masks, which flash kernels do not take.
    eager = trunk.config._attn_implementation == "eager"
    spec.config._attn_implementation = "eager" if eager else "sdpa"
    return spec


def run_layer(
    layer: nn.Module,
    hidden: Float[Tensor, "batch query hidden"],
    attention_bias: Float[Tensor, "mask_batch 1 query key"],
    position_ids: Int[Tensor, "batch query"],
    position_embeddings: PositionEmbeddings,
    cache: Cache | None,
) -> Float[Tensor, "batch query hidden"]:
    """Return a decoder layer's output; new keys are appended to ``cache``."""
    output = layer(
        hidden,
        attention_mask=attention_bias,
        position_ids=position_ids,
        past_key_values=cache,
        use_cache=cache is not None,
        position_embeddings=position_embeddings,
    )
    return output[0] if isinstance(output, tuple) else output


def make_norm(head_block: str, trunk: PreTrainedModel) -> nn.Module:
    """Return a norm of the trunk's class: some trunks' are centred on zero, and checkpoints carry their weights.

    The final norm tells the class. A layer's first norm, which transformers' own MTP layers go by, is a gated one of
    another interface where the trunk ends in linear attention.
    """
    config = trunk.config.get_text_config()
    if head_block != "trunk" or not hasattr(config, "rms_norm_eps"):
        return nn.RMSNorm(config.hidden_size, eps=NORM_EPS)
    norm = final_norm(backbone_of(trunk))
    if not any(True for _ in norm.parameters()):  # nothing to start anew, and a constructor of another form
        return copy.deepcopy(norm)
    return type(norm)(config.hidden_size, eps=config.rms_norm_eps)


def copy_last_layer(trunk: PreTrainedModel, layer: nn.Module) -> None:
    """Start a decoder layer as a copy of the trunk's last one of the same form.

    Raises:
        ValueError: no layer of the trunk has that form.
    """
    wanted = {name: value.shape for name, value in layer.state_dict().items()}
    for candidate in reversed(list(layer_list(backbone_of(trunk)).children())):
        state = candidate.state_dict()
        if {name: value.shape for name, value in state.items()} == wanted:
            layer.load_state_dict(state)
            return
    raise ValueError(
        "head_init='copy_trunk' needs a layer in the trunk of the heads' form, and there is none; use "
        "head_block='trunk', or head_init='family'."
    )


def inner_width(trunk_config: PreTrainedConfig) -> int:
    """Return the inner width of the trunk's MLPs, four times its own where the config has no name for it."""
    given = getattr(trunk_config, "intermediate_size", None) or getattr(trunk_config, "n_inner", None)
    return given or 4 * trunk_config.hidden_size


def num_attention_heads(trunk_config: PreTrainedConfig) -> int:
    """Return the trunk's number of attention heads, which heads with attention take over.

    Raises:
        ValueError: it has none.
    """
    number: int | None = getattr(trunk_config, "num_attention_heads", None)
    if number is None:
        raise ValueError(
            f"heads with attention take their number of attention heads from the trunk, and {trunk_config.model_type} "
            "has none; choose another trunk, or heads without attention."
        )
    return number


def longest_text(trunk_config: PreTrainedConfig) -> int:
    """Return the most tokens a trunk is made for; of one that tells places by a bias, Llama's default.

    Plain rotary frequencies do not depend on it.
    """
    longest: int = getattr(trunk_config, "max_position_embeddings", LlamaConfig.max_position_embeddings)
    return longest


def check_one_source(feature_layers: tuple[int, ...], hidden_stage: str) -> None:
    """Raise ValueError if heads are to read layers of the trunk and its last hidden state before the norm."""
    if feature_layers and hidden_stage == "pre_norm":
        raise ValueError(
            f"hidden_stage='pre_norm' with feature_layers={list(feature_layers)}: the heads read the outputs of those "
            "layers, not the last hidden state; pass feature_layers=() to read the latter."
        )


def _trunk_layer_serves(trunk: PreTrainedModel) -> bool:
    backbone = backbone_of(trunk)
    if not hasattr(backbone, "layers") or not hasattr(backbone, "rotary_emb"):
        return False
    # The heads' own layer attends to everything; hybrid trunks have such layers among others.
    layer_types = getattr(trunk.config.get_text_config(), "layer_types", None) or ["full_attention"]
    if "full_attention" not in layer_types and set(layer_types) != {"sliding_attention"}:
        return False
    layer, rotary = (inspect.signature(part.forward).parameters for part in _trunk_classes(trunk))
    return set(layer) >= _LAYER_ARGUMENTS and list(rotary) == ["self", "x", "position_ids"]


def _trunk_classes(trunk: PreTrainedModel) -> tuple[type[nn.Module], type[nn.Module]]:
    layers, rotary = backbone_of(trunk).get_submodule("layers"), backbone_of(trunk).get_submodule("rotary_emb")
    return type(list(layers.children())[-1]), type(rotary)


def _one_layer_config(trunk_config: PreTrainedConfig) -> PreTrainedConfig:
    config = copy.deepcopy(trunk_config)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = ["full_attention"]
    if getattr(config, "mlp_layer_types", None) is not None:
        config.mlp_layer_types = [config.mlp_layer_types[-1]]
    if getattr(config, "first_k_dense_replace", None) is not None:
        # Dense layers come first; the heads' is of the last layer's kind.
        config.first_k_dense_replace = int(config.first_k_dense_replace >= config.num_hidden_layers)
    if getattr(config, "mlp_only_layers", None) is not None:
        # Sparse layers every so many, but for those named (Qwen): likewise the last layer's kind, at index 0.
        last = config.num_hidden_layers - 1
        is_dense = last in config.mlp_only_layers or (last + 1) % config.decoder_sparse_step != 0
        config.mlp_only_layers = [0] if is_dense else []
        config.decoder_sparse_step = 1
    config.num_hidden_layers = 1
    return config


def _llama_config(trunk_config: PreTrainedConfig) -> LlamaConfig:
    hidden_size, num_heads = trunk_config.hidden_size, num_attention_heads(trunk_config)
    if hidden_size % (2 * num_heads):
        raise ValueError(
            f"head_block='llama' needs an even number of channels per attention head, and hidden_size={hidden_size} "
            f"over num_attention_heads={num_heads} gives {hidden_size / num_heads:g}; choose another trunk."
        )
    return LlamaConfig(
        vocab_size=trunk_config.vocab_size,
        hidden_size=hidden_size,
        intermediate_size=inner_width(trunk_config),
        num_hidden_layers=1,
        num_attention_heads=num_heads,
        max_position_embeddings=longest_text(trunk_config),
    )
