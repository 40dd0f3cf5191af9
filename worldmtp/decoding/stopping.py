"""When a text ends: at an end-of-text token, at the end of a stop sequence, or where it is long enough.

Several tokens come at a time, so an end may lie inside them; what follows it is cut off. What ends a text stays in it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from worldmtp.decoding.integers import as_integer

TokenIds = SupportsIndex | Iterable[SupportsIndex]
"""One id or several: integers of Python's or numpy's, arrays or tensors of them."""


@dataclass(frozen=True)
class StopRule:
    """``stop_sequences`` are of token ids; new tokens alone are searched for them, never the prompt."""

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
    new: Int[Tensor, "row length"],
    old_lengths: Int[Tensor, " row"],
    lengths: Int[Tensor, " row"],
    rule: StopRule,
) -> tuple[Int[Tensor, " row"], Bool[Tensor, " row"]]:
    """Where rows of new tokens end, of which those from ``old_lengths`` to ``lengths`` have just come, and whether.

    ``new[r, : lengths[r]]`` are all that row r got after its prompt; what came before ``old_lengths`` did not end it.
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


def make_stop_rule(
    eos_token_id: Any,
    stop_sequences: Any,
    max_new_tokens: Any,
    vocab_size: int,
) -> StopRule:
    """The rule of a caller's arguments, for a model with that vocabulary. Kinds are checked here, not annotated.

    Raises:
        TypeError: something is no integer, or a stop sequence is no sequence of them.
        ValueError: an id that no text can have, an empty stop sequence, or ``max_new_tokens`` below 1.
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
    """Whether it holds several ids or sequences; text does not, nor does a tensor of one number."""
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes)) and getattr(value, "ndim", 1) > 0
