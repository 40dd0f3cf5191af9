"""Weights of Llama and Qwen3 layers, laid out for few and large operations a step.

A step of a small model is mostly calls: three projections of one input are one matrix here, and so are a gated MLP's
two. Matrices are (input, output), which is faster from a few rows on and no slower for one. Where nothing but scores
hangs on the order of a head's numbers, columns of queries and keys are put in pairs, so that a rotation is one complex
product instead of five operations.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class PackedLayer:
    """Copies of a layer's matrices, and its own other weights; biases are None where it has none.

    ``query_norm`` and ``key_norm`` are Qwen3's.
    """

    input_norm: Float[Tensor, " hidden"]
    attention_in: Float[Tensor, "hidden query_key_value"]
    attention_in_bias: Float[Tensor, " query_key_value"] | None
    query_norm: Float[Tensor, " head_dim"] | None
    key_norm: Float[Tensor, " head_dim"] | None
    attention_out: Float[Tensor, "queries hidden"]
    attention_out_bias: Float[Tensor, " hidden"] | None
    mlp_norm: Float[Tensor, " hidden"]
    mlp_in: Float[Tensor, "hidden gate_up"]
    mlp_in_bias: Float[Tensor, " gate_up"] | None
    mlp_out: Float[Tensor, "inner hidden"]
    mlp_out_bias: Float[Tensor, " hidden"] | None


def pack_layer(layer: Any, pair_heads_of: int | None) -> PackedLayer:
    """A decoder layer of a Llama or a Qwen3; ``lean_runner`` has seen to its class.

    ``pair_heads_of`` is the size of heads whose numbers are put in pairs; None leaves them in order.
    """
    attention, mlp = layer.self_attn, layer.mlp
    weights, biases = [], []
    for projection in (attention.q_proj, attention.k_proj):
        weight, bias = projection.weight, projection.bias
        if pair_heads_of is not None:
            weight = in_pairs(weight, pair_heads_of)
            bias = None if bias is None else in_pairs(bias[:, None], pair_heads_of)[:, 0]
        weights.append(weight)
        biases.append(bias)
    query_norm, key_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
    return PackedLayer(
        input_norm=layer.input_layernorm.weight,
        attention_in=_transposed(*weights, attention.v_proj.weight),
        attention_in_bias=_joined([*biases, attention.v_proj.bias]),
        query_norm=None if query_norm is None else query_norm.weight,
        key_norm=None if key_norm is None else key_norm.weight,
        attention_out=_transposed(attention.o_proj.weight),
        attention_out_bias=attention.o_proj.bias,
        mlp_norm=layer.post_attention_layernorm.weight,
        mlp_in=_transposed(mlp.gate_proj.weight, mlp.up_proj.weight),
        mlp_in_bias=_joined([mlp.gate_proj.bias, mlp.up_proj.bias]),
        mlp_out=_transposed(mlp.down_proj.weight),
        mlp_out_bias=mlp.down_proj.bias,
    )


def projections(layer: Any) -> list[Any]:
    """The linear layers whose weights ``pack_layer`` copies."""
    attention, mlp = layer.self_attn, layer.mlp
    of_attention = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    return [*of_attention, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def packed_bytes(layers: list[Any]) -> int:
    """What the copies of ``pack_layer`` take."""
    weights = [projection.weight for layer in layers for projection in projections(layer)]
    return sum(weight.numel() * weight.element_size() for weight in weights)


def in_pairs(rows: Float[Tensor, "row column"], head_dim: int) -> Float[Tensor, "row column"]:
    """Rows of each head in the order 0, half, 1, half + 1, ..: what is rotated together stands together."""
    by_half = rows.reshape(-1, 2, head_dim // 2, rows.shape[1])
    return by_half.transpose(1, 2).reshape(rows.shape)


def _transposed(*weights: Float[Tensor, "_ input"]) -> Float[Tensor, "input outputs"]:
    """One matrix of several, of which each row is an input."""
    return torch.cat(weights).t().contiguous()


def _joined(biases: list[Tensor | None]) -> Tensor | None:
    """One bias of several projections, which have one all or none."""
    given = [bias for bias in biases if bias is not None]
    return torch.cat(given) if given else None
