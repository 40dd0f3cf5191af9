"""Where imagination starts: prefixes of real text, by row and by the position of their last token."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def resolve_roots(
    attention_mask: Bool[Tensor, "batch length"],
    root_rows: Int[Tensor, " root"] | None,
    root_positions: Int[Tensor, " root"] | None,
) -> tuple[Int[Tensor, " root"], Int[Tensor, " root"]]:
    """The roots asked for, or the whole of each row where none are.

    Raises:
        ValueError: rows without positions, or positions without rows.
    """
    if (root_rows is None) != (root_positions is None):
        raise ValueError("root_rows and root_positions go together; give both, or neither for the whole of each row.")
    if root_rows is None or root_positions is None:
        return torch.arange(len(attention_mask), device=attention_mask.device), last_positions(attention_mask)
    return root_rows, root_positions


def last_positions(attention_mask: Bool[Tensor, "batch length"]) -> Int[Tensor, " batch"]:
    """Index of the last real token of each row, whichever side the padding is on; -1 where there is none."""
    index = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return torch.where(attention_mask, index, -1).amax(dim=1)
