"""What callers pass, checked before anything runs: prompts, ends of texts, integers, and a cache that fits.

Stop sequences are sequences of token ids. Kinds are checked here and not by annotations, so that ids may be Python's or
numpy's integers, arrays or tensors.
"""

import operator
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from transformers import PreTrainedConfig

from worldmtp.model import MTPModel

TokenIds = SupportsIndex | Iterable[SupportsIndex]
"""One id or several: integers of Python's or numpy's, arrays or tensors of them."""


@dataclass(frozen=True)
class CacheSize:
    """The size of a cache; ``num_bytes`` is the product of all fields, twice: for keys and for values."""

    num_rows: int
    capacity: int
    num_layers: int
    num_heads: int
    head_dim: int
    bytes_per_number: int

    @property
    def num_bytes(self) -> int:
        """Return the bytes of keys and values."""
        numbers = self.num_rows * self.capacity * self.num_layers * self.num_heads * self.head_dim
        return 2 * numbers * self.bytes_per_number

    def __str__(self) -> str:
        return (
            f"2 x {self.num_rows} rows x {self.capacity} slots x {self.num_layers} layers x {self.num_heads} key-value "
            f"heads x {self.head_dim} numbers x {self.bytes_per_number} bytes = {self.num_bytes / 2**20:.1f} MiB"
        )


def cache_size(config: PreTrainedConfig, num_rows: int, capacity: int, dtype: torch.dtype) -> CacheSize:
    """Return the size of the cache of a trunk with that config."""
    text = config.get_text_config()
    num_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return CacheSize(num_rows, capacity, text.num_hidden_layers, num_heads, head_dim, dtype.itemsize)


def check_prompts(
    model: MTPModel,
    input_ids: Shaped[Tensor, "..."],
    attention_mask: Shaped[Tensor, "..."] | None,
    pad_token_id: int,
    max_new_tokens: int,
) -> tuple[Int[Tensor, "row length"], Bool[Tensor, "row length"]]:
    """Return the prompts in 64 bits, which embeddings and gathers require, and the mask of their real tokens.

    Raises:
        ValueError: ids without rows of equal length, not whole numbers or outside the vocabulary, a mask of another
            shape than the ids' or with other values than 0 and 1, a row of padding alone, padding that is not
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
    """Raise MemoryError, with the sum, if the trunk's cache does not fit.

    ``copied_bytes`` of weights are beside it where free memory is the bound.
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
    """Return the free bytes of a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class StopRule:
    """What ends a text: tokens, sequences of tokens, or its length; the prompt is never searched for them."""

    eos_token_ids: tuple[int, ...]
    stop_sequences: tuple[tuple[int, ...], ...]
    max_new_tokens: int

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1.")
        if any(not stop for stop in self.stop_sequences):
            raise ValueError("stop_sequences has an empty one, which would end every text at once; leave it out.")
        for token in (*self.eos_token_ids, *(token for stop in self.stop_sequences for token in stop)):
            if token < 0:
                raise ValueError(f"token id {token} ends texts and is negative; give ids of the vocabulary.")


def first_stop(
    new: Int[Tensor, "row length"], old_lengths: Int[Tensor, " row"], lengths: Int[Tensor, " row"], rule: StopRule
) -> tuple[Int[Tensor, " row"], Bool[Tensor, " row"]]:
    """Return the lengths of rows of new tokens, cut at their ends, and whether each row has ended.

    ``new[r, : lengths[r]]`` is all that row r got after its prompt; only the tokens from ``old_lengths`` on, which have
    just come, can end it.
    """
    if not rule.eos_token_ids and not rule.stop_sequences:
        return lengths.clamp_max(rule.max_new_tokens), lengths >= rule.max_new_tokens
    places = torch.arange(new.shape[1], device=new.device)
    ends = torch.zeros_like(new, dtype=torch.bool)
    for token in rule.eos_token_ids:
        ends |= new == token
    for stop in rule.stop_sequences:
        if len(stop) <= new.shape[1]:
            windows = new.unfold(1, len(stop), 1)
            ends[:, len(stop) - 1 :] |= (windows == torch.tensor(stop, device=new.device)).all(dim=2)
    ends |= places == rule.max_new_tokens - 1
    ends &= (places >= old_lengths[:, None]) & (places < lengths[:, None])
    is_done = ends.any(dim=1)
    first = torch.where(ends, places, new.shape[1]).amin(dim=1) + 1
    return torch.where(is_done, first, lengths), is_done


def make_stop_rule(eos_token_id: Any, stop_sequences: Any, max_new_tokens: Any, vocab_size: int) -> StopRule:
    """Return the rule of a caller's arguments, for a model with that vocabulary.

    Raises:
        TypeError: something is not an integer, or a stop sequence is not a sequence of integers.
        ValueError: an id outside the vocabulary, an empty stop sequence, or ``max_new_tokens`` below 1.
    """
    ends = () if eos_token_id is None else _token_ids("eos_token_id", eos_token_id)
    if not _is_several(stop_sequences):
        raise TypeError(
            f"stop_sequences={stop_sequences!r} has type {type(stop_sequences).__name__}, expected sequences of "
            "token ids."
        )
    stops = list[tuple[int, ...]]()
    for index, stop in enumerate(stop_sequences):
        if not _is_several(stop):
            raise TypeError(
                f"stop_sequences[{index}]={stop!r} has type {type(stop).__name__}, expected a sequence of token ids: "
                "encode text with the tokenizer, and pass a single sequence as [[1, 2]]."
            )
        stops.append(_token_ids(f"stop_sequences[{index}]", stop))
    rule = StopRule(ends, tuple(stops), as_integer("max_new_tokens", max_new_tokens))
    for token in (*ends, *(token for stop in stops for token in stop)):
        if token >= vocab_size:
            raise ValueError(
                f"token id {token} is to end texts and lies outside the vocabulary, 0 .. {vocab_size - 1}, so it never "
                "would; give ids of the vocabulary."
            )
    return rule


def _token_ids(name: str, token_ids: Any) -> tuple[int, ...]:
    if not _is_several(token_ids):
        return (as_integer(name, token_ids, "a token id, or several"),)
    return tuple(as_integer(f"{name}[{index}]", token, "a token id") for index, token in enumerate(token_ids))


def _is_several(value: Any) -> bool:
    """Return whether a value holds several ids or sequences; text does not, nor does a tensor of one number."""
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes)) and getattr(value, "ndim", 1) > 0


def as_integer(name: str, value: Any, expected: str = "an integer") -> int:
    """Return a value as Python's integer.

    Raises:
        TypeError: it is something else, a bool included; ``name`` is what the message calls it.
    """
    is_bool = isinstance(value, (bool, np.bool_)) or (isinstance(value, Tensor) and value.dtype == torch.bool)
    try:
        number = None if is_bool else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name}={value!r} has type {type(value).__name__}, expected {expected}.")
    return number


def as_widths(name: str, widths: Iterable[SupportsIndex] | None) -> tuple[int, ...] | None:
    """Return the numbers of candidates as Python's integers; None stays None.

    Raises:
        TypeError: one of them is not an integer.
    """
    if widths is None:
        return None
    return tuple(as_integer(f"{name}[{index}]", width) for index, width in enumerate(widths))
