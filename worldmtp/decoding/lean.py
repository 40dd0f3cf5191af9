"""The forward of Llama and Qwen3 trunks, written out for decoding.

A step of a small model is mostly overhead: modules called through hooks, masks and position embeddings made anew, keys
repeated for groups. ``LeanRunner`` does what those trunks' own forward does, and nothing else, with the weights of
their own modules, read at every call: nothing is copied, so training is seen at once. Tests hold it to
``HuggingFaceRunner``.

``lean_runner`` takes exactly ``LlamaForCausalLM`` and ``Qwen3ForCausalLM``, in full attention, with linear layers that
are nothing but that and rotary frequencies that do not depend on the length; for any other trunk it gives None.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM, Qwen3ForCausalLM
from transformers.activations import ACT2FN

from worldmtp.decoding.slot_cache import SlotCache, SlotLayer
from worldmtp.heads.features import TrunkFeatures
from worldmtp.model import MTPModel
from worldmtp.trunk_inputs import has_sliding_attention

_TRUNKS = (LlamaForCausalLM, Qwen3ForCausalLM)
_LENGTH_FREE_ROPES = ("default", "linear", "llama3", "yarn")


def lean_runner(model: MTPModel) -> "LeanRunner | None":
    """A runner for the trunk, or None where its forward is not known by heart."""
    trunk = model.trunk
    if type(trunk) not in _TRUNKS or has_sliding_attention(trunk.config):
        return None
    rotary = trunk.base_model.get_submodule("rotary_emb")
    plain = (nn.Linear, nn.Embedding, nn.ModuleList)
    inner = [module for layer in trunk.base_model.get_submodule("layers").children() for module in layer.modules()]
    is_plain = all(type(module) is nn.Linear for module in inner if isinstance(module, plain))
    has_hooks = any(module._forward_hooks or module._forward_pre_hooks for module in inner)
    if not is_plain or has_hooks or getattr(rotary, "rope_type", None) not in _LENGTH_FREE_ROPES:
        return None
    return LeanRunner(model)


class LeanRunner:
    """A ``TrunkRunner``."""

    def __init__(self, model: MTPModel) -> None:
        config = model.trunk.config
        self._backbone: Any = model.base_model  # whose class lean_runner has seen to
        self._layers: list[Any] = [*model.base_model.get_submodule("layers").children()]
        self._activation = ACT2FN[config.hidden_act]
        self._eps: float = config.rms_norm_eps
        self._head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._grouped = config.num_key_value_heads != config.num_attention_heads
        # As ``record_features`` names them: from the end where negative.
        self._recorded = [index % len(self._layers) for index in model.heads.feature_layers]

    def __call__(
        self,
        input_ids: Int[Tensor, "row query"],
        position_ids: Int[Tensor, "row query"],
        allowed: Bool[Tensor, "mask_row 1 query key"] | None,
        cache: SlotCache,
    ) -> TrunkFeatures:
        """The trunk's forward."""
        hidden = functional.embedding(input_ids, self._backbone.embed_tokens.weight)
        cos, sin = self._backbone.rotary_emb(hidden, position_ids)
        rotation = cos[:, None], sin[:, None]
        outputs = []
        for layer, cached in zip(self._layers, cache.layers, strict=True):
            assert isinstance(cached, SlotLayer)
            normed = self._norm(hidden, layer.input_layernorm)
            hidden = hidden + self._attention(layer.self_attn, normed, rotation, allowed, cached)
            normed, mlp = self._norm(hidden, layer.post_attention_layernorm), layer.mlp
            hidden = hidden + mlp.down_proj(self._activation(mlp.gate_proj(normed)) * mlp.up_proj(normed))
            outputs.append(hidden)
        return TrunkFeatures(
            post_norm=self._norm(hidden, self._backbone.norm),
            pre_norm=hidden,
            layers=tuple(outputs[index] for index in self._recorded),
        )

    def _norm(self, hidden: Float[Tensor, "*batch width"], norm: Any) -> Float[Tensor, "*batch width"]:
        weight = norm.weight
        if hidden.dtype == torch.float32:
            return functional.rms_norm(hidden, weight.shape, weight, self._eps)
        # The trunks norm in single precision whatever they compute in, double too.
        return weight * functional.rms_norm(hidden.float(), weight.shape, None, self._eps).to(hidden.dtype)

    def _attention(
        self,
        attention: Any,
        hidden: Float[Tensor, "row query hidden"],
        rotation: tuple[Tensor, Tensor],
        allowed: Bool[Tensor, "mask_row 1 query key"] | None,
        cached: SlotLayer,
    ) -> Float[Tensor, "row query hidden"]:
        num_rows, num_queries, _ = hidden.shape
        by_head = (num_rows, num_queries, -1, self._head_dim)
        queries = attention.q_proj(hidden).view(by_head)
        keys = attention.k_proj(hidden).view(by_head)
        values = attention.v_proj(hidden).view(by_head).transpose(1, 2)
        if hasattr(attention, "q_norm"):
            queries, keys = self._norm(queries, attention.q_norm), self._norm(keys, attention.k_norm)
        keys, values = cached.update(_rotated(keys.transpose(1, 2), rotation), values)
        mixed = functional.scaled_dot_product_attention(
            _rotated(queries.transpose(1, 2), rotation),
            keys,
            values,
            attn_mask=allowed,
            scale=attention.scaling,
            enable_gqa=self._grouped,
        )
        return attention.o_proj(mixed.transpose(1, 2).reshape(num_rows, num_queries, -1))


def _rotated(
    states: Float[Tensor, "row head query head_dim"], rotation: tuple[Tensor, Tensor]
) -> Float[Tensor, "row head query head_dim"]:
    cos, sin = rotation
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat([-second, first], dim=-1) * sin
