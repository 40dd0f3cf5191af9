"""What a trunk's backbone is called with: positions that count real tokens, and a mask that keeps documents apart.

Left out: packed documents with padding on a trunk with sliding attention, whose backbone takes no mask of ours.
"""

from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from transformers import Cache, PreTrainedConfig, PreTrainedModel

from worldmtp.heads.masks import additive_mask, causal_mask
from worldmtp.targets import document_ids_from_position_ids, position_ids_from_attention_mask


def real_tokens(
    input_ids: Int[Tensor, "batch time"], attention_mask: Shaped[Tensor, "batch time"] | None
) -> Bool[Tensor, "batch time"]:
    """Where there is no padding; without a mask, everywhere."""
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    return attention_mask.bool()


def check_mask_shape(
    input_ids: Int[Tensor, "batch time"], attention_mask: Shaped[Tensor, "..."] | None, cache: Cache | None = None
) -> None:
    """Raise unless the mask has an entry for each token and for each that is cached: a backbone would broadcast it.

    Raises:
        ValueError: it has another shape.
    """
    num_rows, length = input_ids.shape
    num_cached = 0 if cache is None else cache.get_seq_length()
    if attention_mask is not None and tuple(attention_mask.shape) != (num_rows, num_cached + length):
        cached = f" after {num_cached} cached tokens" if num_cached else ""
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, expected {(num_rows, num_cached + length)}: "
            f"input_ids has shape {tuple(input_ids.shape)}{cached}."
        )


def trunk_inputs(
    trunk: PreTrainedModel,
    input_ids: Int[Tensor, "batch time"],
    attention_mask: Shaped[Tensor, "batch _"] | None,
    position_ids: Int[Tensor, "_ time"] | None,
) -> dict[str, Any]:
    """Keywords for the trunk's backbone; packed documents are told by ``position_ids`` that restart.

    Raises:
        ValueError: packed documents and an attention mask, on a trunk with sliding attention.
    """
    length = input_ids.shape[1]
    if attention_mask is not None and position_ids is None:
        # Over a cached prefix the mask is longer than the tokens; left alone, a backbone would count padding.
        position_ids = position_ids_from_attention_mask(attention_mask.bool())[:, -length:]
    elif attention_mask is not None and position_ids is not None and attention_mask.shape[1] == length:
        real = attention_mask.bool()
        attention_mask = _packed_mask(trunk, real, position_ids.expand(input_ids.shape), attention_mask)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}


def has_sliding_attention(config: PreTrainedConfig) -> bool:
    """Whether a layer attends to a window; older configs say so without naming the layers' types."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None:
        return "sliding_attention" in layer_types
    return bool(getattr(config, "sliding_window", None)) and getattr(config, "use_sliding_window", True) is not False


def _packed_mask(trunk: PreTrainedModel, real: Tensor, position_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Backbones see document boundaries in position_ids only where there is no mask; else they are told."""
    document_ids = document_ids_from_position_ids(position_ids)
    boundary = document_ids[:, 1:] != document_ids[:, :-1]
    if not (boundary & real[:, 1:] & real[:, :-1]).any():
        return attention_mask
    if has_sliding_attention(trunk.config.get_text_config()):
        raise ValueError(
            "packed documents with an attention_mask are not supported for a trunk with sliding attention; pack "
            "without padding and pass no attention_mask."
        )
    return additive_mask(causal_mask(real, document_ids), trunk.dtype)
