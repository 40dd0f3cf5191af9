"""The forward of Llama and Qwen3 trunks, written out for decoding.

A step of a small model is mostly overhead: modules called through hooks, masks and position embeddings made anew, keys
repeated for groups. ``LeanRunner`` computes the trunk's forward in a third of the operations, on weights that it packs
when a batch of prompts begins; tests hold it to ``HuggingFaceRunner``. Three projections of one input are one matrix,
and so are a gated MLP's two. Matrices are (input, output), which is faster from a few rows on and no slower for one.
Where only scores depend on the order of a head's numbers, columns of queries and keys are put in pairs, so that a
rotation is one complex product instead of five operations.

``lean_runner`` takes exactly ``LlamaForCausalLM`` and ``Qwen3ForCausalLM`` with full attention, plain linear layers,
rotary frequencies that do not depend on the length, and weights whose copies are small. A large trunk's step is not
overhead, and its copies would take memory.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM, Qwen3ForCausalLM
from transformers.activations import ACT2FN

from worldmtp.decoding.cache import SlotCache, SlotLayer, TrunkRunner
from worldmtp.decoding.trunk import HuggingFaceRunner
from worldmtp.model import MTPModel
from worldmtp.model.trunk import TrunkFeatures, additive_mask, has_sliding_attention

MAX_PACKED_BYTES = 2**30

_TRUNKS = (LlamaForCausalLM, Qwen3ForCausalLM)
_LENGTH_FREE_ROPES = ("default", "linear", "llama3", "yarn")


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


def lean_runner(model: MTPModel) -> "LeanRunner | None":
    """Return a runner for the trunk, or None where its forward is not written out here."""
    trunk = model.trunk
    if type(trunk) not in _TRUNKS or has_sliding_attention(trunk.config):
        return None
    rotary = trunk.base_model.get_submodule("rotary_emb")
    layers: list[Any] = list(trunk.base_model.get_submodule("layers").children())
    # Only plain linear layers are their weight: an adapter's layer also has a ``weight``, its base's.
    is_plain = all(type(projection) is nn.Linear for layer in layers for projection in projections(layer))
    is_plain = is_plain and type(trunk.get_input_embeddings()) is nn.Embedding
    has_hooks = any(module._forward_hooks or module._forward_pre_hooks for module in trunk.modules())
    if not is_plain or has_hooks or getattr(rotary, "rope_type", None) not in _LENGTH_FREE_ROPES:
        return None
    # Under autocast a trunk rounds where its modules do, which is not written out here.
    if torch.is_autocast_enabled(model.device.type) or packed_bytes(layers) > MAX_PACKED_BYTES:
        return None
    return LeanRunner(model)


def make_runner(model: MTPModel) -> TrunkRunner:
    """Return the lean runner where it knows the trunk, else one of the trunk's own forward."""
    return lean_runner(model) or HuggingFaceRunner(model)


class LeanRunner:
    """A ``TrunkRunner`` of the trunks that ``lean_runner`` takes."""

    def __init__(self, model: MTPModel) -> None:
        config = model.trunk.config
        self._backbone: Any = model.base_model  # of a class that lean_runner has checked
        self._modules: list[Any] = [*model.base_model.get_submodule("layers").children()]
        self._activation = ACT2FN[config.hidden_act]
        self._eps: float = config.rms_norm_eps
        self._head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._num_queries: int = config.num_attention_heads
        self._num_keys: int = config.num_key_value_heads
        self._num_groups = self._num_queries // self._num_keys
        self._scale: float = self._head_dim**-0.5
        # As ``record_features`` names them: from the end where negative.
        self._recorded = [index % len(self._modules) for index in model.heads.feature_layers]
        self._layers: list[PackedLayer] = []
        self._in_pairs = False
        self._rotations = torch.zeros(0)

    @property
    def copied_bytes(self) -> int:
        """Return the bytes of the packed matrices."""
        return packed_bytes(self._modules)

    def begin(self, num_positions: int) -> None:
        """Pack the weights as they are now, and compute the rotations of so many positions."""
        weight = self._backbone.embed_tokens.weight
        has_norms = hasattr(self._modules[0].self_attn, "q_norm")
        # Norms of queries and keys are sums in single precision, which the order changes; half precision has no
        # complex numbers.
        self._in_pairs = not has_norms and weight.dtype in (torch.float32, torch.float64)
        self._layers = [pack_layer(module, self._head_dim if self._in_pairs else None) for module in self._modules]
        positions = torch.arange(num_positions, device=weight.device)
        cos, sin = (part[0, :, : self._head_dim // 2] for part in self._backbone.rotary_emb(weight, positions[None]))
        self._rotations = torch.stack([cos, sin], dim=-1).contiguous()

    def __call__(
        self,
        input_ids: Int[Tensor, "row query"],
        position_ids: Int[Tensor, "row query"],
        allowed: Bool[Tensor, "mask_row 1 query key"] | None,
        cache: SlotCache,
    ) -> TrunkFeatures:
        """Compute the trunk's forward, in the weights' own precision where autocast was switched on since."""
        kind = input_ids.device.type
        if torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self(input_ids, position_ids, allowed, cache)
        shape = (*input_ids.shape, -1)
        hidden = functional.embedding(input_ids.flatten(), self._backbone.embed_tokens.weight)  # (B T, D)
        rotations = self._rotations[position_ids][:, :, None]
        mask = None if allowed is None else additive_mask(allowed, hidden.dtype)
        # With one query a row the kernel's own grouping is up to twice as fast; with more, folding is.
        folds = self._num_groups > 1 and min(input_ids.shape) > 1
        if folds and mask is not None:
            mask = mask.repeat(1, 1, self._num_groups, 1)
        outputs = []
        for layer, cached in zip(self._layers, cache.layers, strict=True):
            assert isinstance(cached, SlotLayer)
            states = self._project(layer, self._norm(hidden, layer.input_norm), shape[:2], rotations)
            keys, values = cached.update_joint(states[:, self._num_queries :])
            mixed = self._attend(states[:, : self._num_queries], keys, values, mask, folds)
            hidden = _add_linear(hidden, mixed, layer.attention_out, layer.attention_out_bias)
            gate_up = _linear(self._norm(hidden, layer.mlp_norm), layer.mlp_in, layer.mlp_in_bias)
            gate, up = gate_up.chunk(2, dim=-1)
            hidden = _add_linear(hidden, self._activation(gate).mul_(up), layer.mlp_out, layer.mlp_out_bias)
            outputs.append(hidden)
        return TrunkFeatures(
            post_norm=self._norm(hidden, self._backbone.norm.weight).view(shape),
            pre_norm=hidden.view(shape),
            layers=tuple(outputs[index].view(shape) for index in self._recorded),
        )

    def _norm(self, hidden: Float[Tensor, "*batch width"], weight: Tensor) -> Float[Tensor, "*batch width"]:
        if hidden.dtype == torch.float32:
            return torch.rms_norm(hidden, weight.shape, weight, self._eps)
        # The trunks norm in single precision whatever they compute in, double too.
        return weight * torch.rms_norm(hidden.float(), weight.shape, None, self._eps).to(hidden.dtype)

    def _project(
        self,
        layer: PackedLayer,
        hidden: Float[Tensor, "token hidden"],
        shape: tuple[int, int],
        rotations: Float[Tensor, "row query 1 pair 2"],
    ) -> Float[Tensor, "row head query head_dim"]:
        """Return queries, keys and values one after another in one tensor, the first two normed and rotated."""
        num_queries, num_rotated = self._num_queries, self._num_queries + self._num_keys
        states = _linear(hidden, layer.attention_in, layer.attention_in_bias)
        states = states.view(*shape, num_rotated + self._num_keys, self._head_dim)
        if layer.query_norm is not None and layer.key_norm is not None:
            states[:, :, :num_queries] = self._norm(states[:, :, :num_queries], layer.query_norm)
            states[:, :, num_queries:num_rotated] = self._norm(states[:, :, num_queries:num_rotated], layer.key_norm)
        rotate = _rotate_pairs if self._in_pairs else _rotate_halves
        rotate(states[:, :, :num_rotated], rotations)
        return states.transpose(1, 2)

    def _attend(
        self,
        queries: Float[Tensor, "row head query head_dim"],
        keys: Float[Tensor, "row key_head key head_dim"],
        values: Float[Tensor, "row key_head key head_dim"],
        mask: Float[Tensor, "mask_row 1 folded_query key"] | None,
        folds: bool,
    ) -> Float[Tensor, "token queries"]:
        """Attend; ``folds`` turns the queries that share a key head into more queries of it, given a repeated mask."""
        shape, is_grouped = queries.shape, self._num_groups > 1 and not folds
        if folds:
            queries = queries.reshape(shape[0], self._num_keys, -1, shape[3])
        mixed = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, scale=self._scale, enable_gqa=is_grouped
        )
        return mixed.reshape(shape).transpose(1, 2).reshape(shape[0] * shape[2], -1)


def _rotate_pairs(
    heads: Float[Tensor, "row query head head_dim"], rotations: Float[Tensor, "row query 1 pair 2"]
) -> None:
    """Rotate in place: numbers 2 i and 2 i + 1 are one complex number, times cos + i sin."""
    pairs = torch.view_as_complex(heads.view(*heads.shape[:-1], -1, 2))
    pairs.mul_(torch.view_as_complex(rotations))


def _rotate_halves(
    heads: Float[Tensor, "row query head head_dim"], rotations: Float[Tensor, "row query 1 pair 2"]
) -> None:
    """Rotate in place, numbers i and i + head_dim / 2 as the pair, in the trunks' own order."""
    (first, second), (cos, sin) = heads.chunk(2, dim=-1), rotations.unbind(-1)
    heads.copy_(torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1))


def _linear(
    inputs: Float[Tensor, "token input"], weight: Float[Tensor, "input output"], bias: Float[Tensor, " output"] | None
) -> Float[Tensor, "token output"]:
    return torch.mm(inputs, weight) if bias is None else torch.addmm(bias, inputs, weight)


def _add_linear(
    hidden: Float[Tensor, "token hidden"],
    inputs: Float[Tensor, "token inner"],
    weight: Float[Tensor, "inner hidden"],
    bias: Float[Tensor, " hidden"] | None,
) -> Float[Tensor, "token hidden"]:
    """Return the residual stream plus what a layer adds to it."""
    if hidden.dtype not in (torch.float32, torch.float64):  # the trunks round in between
        return hidden + _linear(inputs, weight, bias)
    added = torch.addmm(hidden, inputs, weight)
    return added if bias is None else added.add_(bias)


def pack_layer(layer: Any, pair_heads_of: int | None) -> PackedLayer:
    """Pack a decoder layer of Llama or Qwen3.

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
    """Return the linear layers whose weights ``pack_layer`` copies."""
    attention, mlp = layer.self_attn, layer.mlp
    of_attention = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    return [*of_attention, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def packed_bytes(layers: list[Any]) -> int:
    """Return the bytes of the copies that ``pack_layer`` makes."""
    weights = [projection.weight for layer in layers for projection in projections(layer)]
    return sum(weight.numel() * weight.element_size() for weight in weights)


def in_pairs(rows: Float[Tensor, "row column"], head_dim: int) -> Float[Tensor, "row column"]:
    """Order the rows of each head 0, half, 1, half + 1, ..: numbers that rotate together stand together."""
    by_half = rows.reshape(-1, 2, head_dim // 2, rows.shape[1])
    return by_half.transpose(1, 2).reshape(rows.shape)


def _transposed(*weights: Float[Tensor, "_ input"]) -> Float[Tensor, "input outputs"]:
    """Return one matrix of several, with a row for each input."""
    return torch.cat(weights).t().contiguous()


def _joined(biases: list[Tensor | None]) -> Tensor | None:
    """Return one bias of several projections, which all have one, or none."""
    given = [bias for bias in biases if bias is not None]
    return torch.cat(given) if given else None
