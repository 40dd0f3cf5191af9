"""Targets per depth: at position t, depth k predicts token t+k, if that is a question worth asking.

Depth 2 of a prompt ``p q`` with the answer ``a b EOS``:

    position   0    1    2    3    4    5
    text       p    q    a    b   EOS  pad
    target     a    b   EOS   -    -    -
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class DepthTargets:
    """``targets[:, t, k - 1]`` is token t+k where ``mask`` is True, and zero beyond the end of the row."""

    targets: Int[Tensor, "batch time depth"]
    mask: Bool[Tensor, "batch time depth"]


def depth_targets(
    input_ids: Int[Tensor, "batch time"],
    attention_mask: Bool[Tensor, "batch time"],
    depths: int | Sequence[int],
    loss_mask: Bool[Tensor, "batch time"] | None = None,
    document_ids: Int[Tensor, "batch time"] | None = None,
) -> DepthTargets:
    """Return token t+k for every position t and depth k in 1 .. ``depths``, and whether it counts.

    Where depths leap (a stride), ``depths`` lists how far ahead each looks instead.

    It counts when t and t+k are real tokens of the same document with no padding between, and the *predicted* token
    t+k is in ``loss_mask``: a prompt's last positions predict the answer, nobody predicts the prompt.

    Raises:
        ValueError: there is no depth, or one that does not look ahead.
    """
    offsets = range(1, depths + 1) if isinstance(depths, int) else depths
    if not len(offsets) or min(offsets) < 1:
        raise ValueError(f"depths={depths} must be at least 1, or a list of offsets of at least 1.")
    length = input_ids.shape[1]
    steps = torch.tensor([*offsets], device=input_ids.device)
    ahead = torch.arange(length, device=input_ids.device)[:, None] + steps  # (T, K)
    inside = ahead < length
    ahead = ahead.clamp_max(length - 1)
    num_padding = (~attention_mask).long().cumsum(dim=1)
    mask = inside & attention_mask[:, :, None] & attention_mask[:, ahead]
    mask = mask & (num_padding[:, :, None] == num_padding[:, ahead])
    if loss_mask is not None:
        mask = mask & loss_mask[:, ahead]
    if document_ids is not None:
        mask = mask & (document_ids[:, :, None] == document_ids[:, ahead])
    return DepthTargets(targets=input_ids[:, ahead].masked_fill(~inside, 0), mask=mask)
