"""When a text ends: at an end-of-text token, at the end of a stop sequence, or where it is long enough.

Several tokens come at a time, so an end may lie inside them; what follows it is cut off. What ends a text stays in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


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


def as_token_ids(token_ids: int | Sequence[int] | None) -> tuple[int, ...]:
    """None, one or several as a tuple."""
    if token_ids is None:
        return ()
    return (token_ids,) if isinstance(token_ids, int) else tuple(token_ids)
