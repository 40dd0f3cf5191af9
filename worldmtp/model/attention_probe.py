"""Attention maps of a trunk: the weights that selected queries give to every key, layer by layer and head by head.

``output_attentions=True`` is of no use here: of the fast back-ends it returns nothing, and of ``eager`` everything, a
square for each head of each row. So for the length of one pass the trunk runs on a back-end of its own, which lets
PyTorch's kernel make the layers' output and computes the softmax once more, in float32 or better, for the queries that
are asked for. The numbers are those of ``attn_implementation="eager"``; the cost is rows x heads x queries x keys.

Left out: the heads' own layers; trunks that change their scores on the way (soft caps, learned sinks, position biases)
or have layers without attention, which are refused; passes over a cache.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from worldmtp.model.trunk import run_trunk

_BACKEND = "worldmtp_probe"
_CHANGES = ("softcap", "position_bias", "s_aux")
"""Keywords by which a layer says that its weights are not the plain softmax of scaled products."""


class _Recorder:
    def __init__(self, queries: Int[Tensor, "batch query"]) -> None:
        self.queries = queries
        self.maps: list[Float[Tensor, "batch head query time"]] = []


_RECORDER: ContextVar[_Recorder | None] = ContextVar("recorder of attention maps", default=None)


@torch.no_grad()
def attention_maps(
    trunk: PreTrainedModel,
    input_ids: Int[Tensor, "batch time"],
    queries: Int[Tensor, "batch query"],
    attention_mask: Shaped[Tensor, "batch _"] | None = None,
) -> Float[Tensor, "batch layer head query time"]:
    """Return what each layer's heads give to every key, from the places that ``queries`` names in each row.

    Weights of a query add up to 1; keys behind it and padding have 0. A query that is padding has no meaning.

    Raises:
        ValueError: a query lies outside of its row, the trunk is in training mode, so that dropout would change what
            is seen, or its layers change their scores on the way.
        RuntimeError: not every layer has attention that can be seen, or layers differ in their number of heads.
    """
    length = input_ids.shape[1]
    if queries.numel() and not (queries.min() >= 0 and queries.max() < length):
        raise ValueError(
            f"queries run from {int(queries.min())} to {int(queries.max())} and the rows have {length} tokens; name "
            f"places 0 .. {length - 1}."
        )
    if trunk.training:
        raise ValueError(f"{type(trunk).__name__} is in training mode, where dropout acts; call its eval() first.")
    with _recording(trunk, queries) as recorder:
        run_trunk(trunk, input_ids, attention_mask, use_cache=False)
    expected = trunk.config.get_text_config().num_hidden_layers
    if len(recorder.maps) != expected:
        raise RuntimeError(
            f"{type(trunk).__name__} has shown the attention of {len(recorder.maps)} of its {expected} layers: the "
            "others have none, or do not go through transformers' AttentionInterface; choose another trunk, or no "
            "attention maps."
        )
    if len({tuple(found.shape) for found in recorder.maps}) != 1:
        shapes = [tuple(found.shape) for found in recorder.maps]
        raise RuntimeError(f"the layers of {type(trunk).__name__} differ in their maps: {shapes}; they do not stack.")
    return torch.stack(recorder.maps, dim=1)


@contextmanager
def _recording(trunk: PreTrainedModel, queries: Tensor) -> Iterator[_Recorder]:
    recorder, config = _Recorder(queries), trunk.config
    before, token = config._attn_implementation, _RECORDER.set(recorder)
    config._attn_implementation = _BACKEND
    try:
        yield recorder
    finally:
        config._attn_implementation = before
        _RECORDER.reset(token)


def _whole_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Return the kernel's mask, also where the kernel could do without: the queries need their rows of it."""
    return sdpa_mask(*args, **kwargs | {"allow_is_causal_skip": False})


def _probe(
    module: torch.nn.Module,
    query: Float[Tensor, "batch head time channel"],
    key: Float[Tensor, "batch key_head time channel"],
    value: Float[Tensor, "batch key_head time value_channel"],
    attention_mask: Shaped[Tensor, "mask_batch mask_head time time"] | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return what the kernel's back-end returns, and record the weights of the recorder's queries."""
    changed = [name for name in _CHANGES if kwargs.get(name) is not None]
    if changed:
        raise ValueError(
            f"{type(module).__name__} changes its attention by {', '.join(changed)}, which the attention probe does "
            "not follow; choose another trunk, or no attention maps."
        )
    recorder = _RECORDER.get()
    if recorder is None:
        raise RuntimeError(f"the back-end {_BACKEND!r} serves attention_maps alone; set another attn_implementation.")
    if attention_mask is None or attention_mask.dtype != torch.bool:
        raise RuntimeError(
            f"{type(module).__name__} has a mask of its own making, which the attention probe does not follow; choose "
            "another trunk, or no attention maps."
        )
    recorder.maps.append(_weights(query, key, attention_mask, recorder.queries, scaling))
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def _weights(
    query: Tensor, key: Tensor, mask: Tensor, queries: Int[Tensor, "batch query"], scaling: float | None
) -> Float[Tensor, "batch head query time"]:
    batch, num_heads, _, channels = query.shape
    num_keys, length = key.shape[1:3]
    number = queries.shape[1]
    dtype = torch.promote_types(query.dtype, torch.float32)
    asking = query.gather(2, queries[:, None, :, None].expand(-1, num_heads, -1, channels)).to(dtype)
    rows = mask.expand(batch, -1, -1, -1)
    rows = rows.gather(2, queries[:, None, :, None].expand(-1, rows.shape[1], -1, length))
    with torch.autocast(query.device.type, enabled=False):
        # Heads that share a key stand beside one another: (B, H, Q, C) -> (B, H_k, H / H_k, Q, C).
        grouped = asking.view(batch, num_keys, num_heads // num_keys, number, channels)
        scores = grouped @ key.to(dtype)[:, :, None].transpose(-1, -2)
        scores = scores.view(batch, num_heads, number, length) * (channels**-0.5 if scaling is None else scaling)
        return scores.masked_fill(~rows, torch.finfo(dtype).min).softmax(dim=-1)


AttentionInterface.register(_BACKEND, _probe)
AttentionMaskInterface.register(_BACKEND, _whole_mask)
