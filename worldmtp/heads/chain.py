"""The teacher-forced pass of heads over real text: every depth at every position at once.

Depth k at position i reads the real token x_{i+k-1}. Where that lies beyond the row or the document it reads what
happens to stand there; nobody's target asks for it, and no other position sees it.
"""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from worldmtp.heads.base import ActionConditionalHead, ParallelHead
from worldmtp.model.trunk import TrunkFeatures


def head_latents(
    heads: ActionConditionalHead | ParallelHead,
    features: TrunkFeatures,
    embed_ahead: Callable[[int], Float[Tensor, "batch time hidden"]],
    allowed: Bool[Tensor, "batch 1 time time"],
    position_ids: Int[Tensor, "batch time"],
    depths: Iterable[int],
) -> dict[int, Float[Tensor, "batch time hidden"]]:
    """Return latents of the given depths; a chain also computes the depths on the way there.

    ``embed_ahead(n)`` gives the embeddings of the tokens n ahead of each position.
    """
    wanted = sorted(set(depths))
    carry = heads.begin(features)
    if isinstance(heads, ParallelHead):
        return {depth: heads.forward_depth(depth, carry, allowed, position_ids) for depth in wanted}
    latents: dict[int, Tensor] = {}
    cache = DynamicCache() if heads.attention == "branch" else None
    own_branch = torch.eye(allowed.shape[-1], dtype=torch.bool, device=allowed.device)[None, None]
    mask = allowed
    for depth in range(2, max(wanted, default=1) + 1):
        if depth > 2 and heads.attention == "branch":
            mask = torch.cat([mask, own_branch.expand(mask.shape[0], -1, -1, -1)], dim=-1)
        carry = heads.forward_depth(depth, carry, embed_ahead(depth - 1), mask, position_ids, cache)
        if depth in wanted:
            latents[depth] = heads.read(depth, carry)
    return latents
