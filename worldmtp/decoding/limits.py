"""What is refused before anything runs: prompts that make no sense, and a cache that does not fit."""

import os

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from worldmtp.decoding.slot_cache import cache_size
from worldmtp.model import MTPModel


def check_prompts(
    model: MTPModel,
    input_ids: Shaped[Tensor, "..."],
    attention_mask: Shaped[Tensor, "..."] | None,
    pad_token_id: int,
    max_new_tokens: int,
) -> tuple[Int[Tensor, "row length"], Bool[Tensor, "row length"]]:
    """The prompts in 64 bits, which embeddings and gathers ask for, and the mask of their real tokens.

    Raises:
        ValueError: no rows of equal length, ids that are no whole numbers, tokens outside the vocabulary, a mask of
            another shape than the ids' or with other values than 0 and 1, a row of padding alone, padding that nobody
            marked, or a prompt that leaves no room in the trunk's context.
    """
    if input_ids.ndim != 2:
        raise ValueError(
            f"input_ids has shape {tuple(input_ids.shape)}, expected (rows, tokens): pad shorter prompts, and pass "
            "attention_mask."
        )
    if not input_ids.numel():
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; pass at least one row of one token.")
    if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool:
        raise ValueError(f"input_ids are of dtype {input_ids.dtype}; pass token ids as whole numbers.")
    input_ids = input_ids.long()
    config = model.trunk.config.get_text_config()
    lowest, highest = int(input_ids.min()), int(input_ids.max())
    if lowest < 0 or highest >= model.num_tokens:
        raise ValueError(f"input_ids lie in {lowest} .. {highest}, the vocabulary in 0 .. {model.num_tokens - 1}.")
    if attention_mask is None:
        if len(input_ids) > 1 and bool((input_ids[:, [0, -1]] == pad_token_id).any()):
            raise ValueError(
                f"prompts begin or end with pad_token_id={pad_token_id} and there is no attention_mask to say whether "
                "that is padding or text (pad and eos are often one token); pass attention_mask."
            )
        attention_mask = torch.ones_like(input_ids)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)} and input_ids {tuple(input_ids.shape)}; give "
            "every token its own entry."
        )
    mask = attention_mask.bool()
    if not bool((attention_mask == mask).all()):
        raise ValueError(
            f"attention_mask has values from {attention_mask.min().item()} to {attention_mask.max().item()}; expected "
            "0 for padding and 1 for tokens (an additive mask of floats is not taken)."
        )
    empty = torch.nonzero(~mask.any(dim=1))[:, 0].tolist()
    if empty:
        raise ValueError(f"rows {empty} of the prompts are all padding; every row needs at least one token.")
    context, longest = getattr(config, "max_position_embeddings", None), int(mask.sum(dim=1).max())
    if context is not None and longest + max_new_tokens > context:
        raise ValueError(
            f"a prompt of {longest} tokens and max_new_tokens={max_new_tokens} exceed the trunk's context of "
            f"{context}; shorten one of them."
        )
    return input_ids, mask


def check_cache(
    model: MTPModel, num_rows: int, capacity: int, max_cache_bytes: int | None, copied_bytes: int = 0
) -> None:
    """Whether the trunk's cache fits, beside ``copied_bytes`` of its weights where free memory is the bound.

    Raises:
        MemoryError: it does not; the message does the sum.
    """
    size = cache_size(model.trunk.config, num_rows, capacity, model.dtype)
    if max_cache_bytes is not None:
        needed, available, sums = size.num_bytes, max_cache_bytes, f"{size}, and"
    else:
        needed, available = size.num_bytes + copied_bytes, free_memory(model.device)
        sums = f"{size}, copies of the weights {copied_bytes / 2**20:.1f} MiB, and"
    if needed > available:
        raise MemoryError(
            f"the cache takes {sums} {available / 2**20:.1f} MiB are "
            f"{'free' if max_cache_bytes is None else 'allowed by max_cache_bytes'}; decode fewer rows at a time, or "
            "fewer tokens."
        )


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
