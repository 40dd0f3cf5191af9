"""The forward of Llama and Qwen3 trunks, written out for decoding.

A step of a small model is mostly overhead: modules called through hooks, masks and position embeddings made anew, keys
repeated for groups. ``LeanRunner`` does what those trunks' own forward does in a third of the operations, on weights
that it packs when a batch of prompts begins (``worldmtp.decoding.packed``); tests hold it to ``HuggingFaceRunner``.

``lean_runner`` takes exactly ``LlamaForCausalLM`` and ``Qwen3ForCausalLM``, in full attention, with linear layers that
are nothing but that, rotary frequencies that do not depend on the length, and weights whose copies are small; for any
other trunk it gives None. A large trunk's step is not overhead, and its copies would be missed.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM, Qwen3ForCausalLM
from transformers.activations import ACT2FN

from worldmtp.decoding.packed import PackedLayer, pack_layer, packed_bytes, projections
from worldmtp.decoding.slot_cache import SlotCache, SlotLayer
from worldmtp.decoding.trunk import HuggingFaceRunner, TrunkRunner
from worldmtp.model import MTPModel
from worldmtp.model.trunk import TrunkFeatures, additive_mask, has_sliding_attention

MAX_PACKED_BYTES = 2**30

_TRUNKS = (LlamaForCausalLM, Qwen3ForCausalLM)
_LENGTH_FREE_ROPES = ("default", "linear", "llama3", "yarn")


def lean_runner(model: MTPModel) -> "LeanRunner | None":
    """A runner for the trunk, or None where its forward is not known by heart."""
    trunk = model.trunk
    if type(trunk) not in _TRUNKS or has_sliding_attention(trunk.config):
        return None
    rotary = trunk.base_model.get_submodule("rotary_emb")
    layers: list[Any] = list(trunk.base_model.get_submodule("layers").children())
    # What is read by its weight has to be nothing but that: an adapter's layer also has a ``weight``, its base's.
    is_plain = all(type(projection) is nn.Linear for layer in layers for projection in projections(layer))
    is_plain = is_plain and type(trunk.get_input_embeddings()) is nn.Embedding
    has_hooks = any(module._forward_hooks or module._forward_pre_hooks for module in trunk.modules())
    if not is_plain or has_hooks or getattr(rotary, "rope_type", None) not in _LENGTH_FREE_ROPES:
        return None
    # Under autocast a trunk rounds where its modules do, which is its own business.
    if torch.is_autocast_enabled(model.device.type) or packed_bytes(layers) > MAX_PACKED_BYTES:
        return None
    return LeanRunner(model)


def make_runner(model: MTPModel) -> TrunkRunner:
    """Return the lean forward where it knows the trunk, else the trunk's own."""
    return lean_runner(model) or HuggingFaceRunner(model)


class LeanRunner:
    """A ``TrunkRunner``."""

    def __init__(self, model: MTPModel) -> None:
        config = model.trunk.config
        self._backbone: Any = model.base_model  # whose class lean_runner has seen to
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
        """See ``TrunkRunner``."""
        return packed_bytes(self._modules)

    def begin(self, num_positions: int) -> None:
        """Pack the weights as they are now, and the rotations of so many positions."""
        weight = self._backbone.embed_tokens.weight
        has_norms = hasattr(self._modules[0].self_attn, "q_norm")
        # Norms of queries and keys are sums in single precision, which an order changes; half precision has no complex
        # numbers.
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
        """The trunk's forward; in the weights' own precision where autocast was switched on since."""
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
        """Queries, keys and values one after another, the first two normed and rotated, all in one tensor."""
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
        """``folds`` makes queries that share a key head more queries of that head, where the mask is repeated too."""
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
    """Numbers 2 i and 2 i + 1 are one complex number, times cos + i sin, in place."""
    pairs = torch.view_as_complex(heads.view(*heads.shape[:-1], -1, 2))
    pairs.mul_(torch.view_as_complex(rotations))


def _rotate_halves(
    heads: Float[Tensor, "row query head head_dim"], rotations: Float[Tensor, "row query 1 pair 2"]
) -> None:
    """Numbers i and i + head_dim / 2 are, as the trunks have them; in place, too."""
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
    """The residual stream and what a layer adds to it."""
    if hidden.dtype not in (torch.float32, torch.float64):  # the trunks round in between
        return hidden + _linear(inputs, weight, bias)
    added = torch.addmm(hidden, inputs, weight)
    return added if bias is None else added.add_(bias)
