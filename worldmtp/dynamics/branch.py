"""Dynamics of heads that attend to depth 2 over the text, then to their own branch (``attention = "branch"``, EAGLE).

A step runs one position. At root p, depth d attends to depth 2's keys at positions before p, which have read real
tokens only, and to the branch's own keys: one of each depth 2 .. d at p, the first of which stands where the text's
own key of p would. So nothing is recomputed, and a horizon of H costs H one-layer token steps.

        depth d = 3, root p        keys of depth 2 at    p-2  p-1 |  p
                                   key of depth 3 at              |  p
                                   tokens read           p-1   p  | a_1, a_2        | = the branch's own
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from worldmtp.dynamics.caches import LayerCache, make_cache, read_cache
from worldmtp.heads.base import ActionConditionalHead
from worldmtp.model import MTPModel
from worldmtp.model.trunk import TrunkFeatures, causal_mask, position_ids_from_attention_mask


@dataclass(frozen=True)
class BranchContext:
    """Depth 2's keys and values over real text, for every root in it; shared until a step. None: there is no depth."""

    attention_mask: Bool[Tensor, "batch length"]
    position_ids: Int[Tensor, "batch length"]
    cache: LayerCache | None


@dataclass(frozen=True)
class BranchState:
    """Branches of real prefixes; ``own`` are the keys and values of the steps since, None before the first."""

    context: BranchContext
    depth: int
    rows: Int[Tensor, " state"]
    positions: Int[Tensor, " state"]
    own: LayerCache | None
    carry: Float[Tensor, "state width"]
    latent: Float[Tensor, "state hidden"]

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, rows: Int[Tensor, " selected"]) -> "BranchState":
        """States by row; the context is shared."""
        return replace(
            self,
            rows=self.rows[rows],
            positions=self.positions[rows],
            own=None if self.own is None else self.own.select(rows),
            carry=self.carry[rows],
            latent=self.latent[rows],
        )


class BranchDynamics:
    """A ``HeadDynamics``."""

    def __init__(self, model: MTPModel, heads: ActionConditionalHead) -> None:
        self._model = model
        self._heads = heads

    def encode(
        self,
        features: TrunkFeatures,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        root_rows: Int[Tensor, " root"],
        root_positions: Int[Tensor, " root"],
    ) -> BranchState:
        """One teacher-forced pass of depth 2, which keeps its keys and values."""
        position_ids = position_ids_from_attention_mask(attention_mask)
        carry = self._heads.begin(features)
        cached = None
        if len(self._heads.depths):
            cache = DynamicCache()
            # The last position reads past the text; no root attends to its key.
            ahead = self._model.embed(torch.roll(input_ids, -1, dims=1))
            self._heads.forward_depth(2, carry, ahead, causal_mask(attention_mask), position_ids, cache)
            (cached,) = read_cache(cache)
        return BranchState(
            context=BranchContext(attention_mask, position_ids, cached),
            depth=1,
            rows=root_rows,
            positions=root_positions,
            own=None,
            carry=carry[root_rows, root_positions],
            latent=features.post_norm[root_rows, root_positions],
        )

    def step(self, state: BranchState, actions: Int[Tensor, " state"]) -> BranchState:
        """The next depth at the root's position."""
        context, rows, depth = state.context, state.rows, state.depth + 1
        assert context.cache is not None  # the caller has seen that there is a next depth
        cached = context.cache.select(rows)
        if state.own is not None:
            cached = LayerCache(
                torch.cat([cached.keys, state.own.keys], dim=2), torch.cat([cached.values, state.own.values], dim=2)
            )
        cache = make_cache([cached])
        length = context.attention_mask.shape[1]
        index = torch.arange(length, device=rows.device)
        before = (index < state.positions[:, None]) & context.attention_mask[rows]
        own = torch.ones((len(rows), depth - 1), dtype=torch.bool, device=rows.device)
        carry = self._heads.forward_depth(
            depth,
            state.carry[:, None],
            self._model.embed(actions[:, None]),
            torch.cat([before, own], dim=1)[:, None, None],
            context.position_ids[rows, state.positions][:, None],
            cache,
        )
        (grown,) = read_cache(cache)
        return replace(
            state,
            depth=depth,
            own=LayerCache(grown.keys[:, :, length:], grown.values[:, :, length:]),
            carry=carry[:, 0],
            latent=self._heads.read(depth, carry)[:, 0],
        )
