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

from worldmtp.dynamics.latent import HeadState, step_by_depth
from worldmtp.dynamics.states import Depths, LayerCache, Shared, StateTable, make_cache, read_cache
from worldmtp.heads.base import ActionConditionalHead
from worldmtp.model import MTPModel
from worldmtp.model.trunk import TrunkFeatures, causal_mask, position_ids_from_attention_mask


@dataclass(frozen=True)
class BranchText(StateTable):
    """Depth 2's keys and values over real text, for every root in it; none where the trunk is all there is."""

    attention_mask: Bool[Tensor, "batch length"]
    position_ids: Int[Tensor, "batch length"]
    cache: LayerCache | None


@dataclass(frozen=True)
class BranchState(HeadState):
    """Branches of real prefixes; ``own`` are the keys and values of the steps since."""

    text: Shared[BranchText]
    positions: Int[Tensor, " state"]
    own: LayerCache | None
    carry: Float[Tensor, "state width"]


class BranchDynamics:
    """The ``HeadDynamics`` of heads that attend to their branch."""

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
        """Return the roots' states, from one teacher-forced pass of depth 2, which keeps its keys and values."""
        position_ids = position_ids_from_attention_mask(attention_mask)
        carry = self._heads.begin(features)
        cached = own = None
        if len(self._heads.depths):
            cache = DynamicCache()
            # The last position reads past the text; no root attends to its key.
            ahead = self._model.embed(torch.roll(input_ids, -1, dims=1))
            self._heads.forward_depth(2, carry, ahead, causal_mask(attention_mask), position_ids, cache)
            (cached,) = read_cache(cache)
            nothing = cached.keys[:1, :, :0].expand(len(root_rows), -1, -1, -1)
            own = LayerCache(nothing, nothing)
        return BranchState(
            latent=features.post_norm[root_rows, root_positions],
            depths=Depths.at_roots(root_rows),
            text=Shared(BranchText(attention_mask, position_ids, cached), root_rows),
            positions=root_positions,
            own=own,
            carry=carry[root_rows, root_positions],
        )

    def step(self, state: BranchState, tokens: Int[Tensor, " state"]) -> BranchState:
        """Return the next depth at the root's position."""
        return step_by_depth(self._step, state, tokens)

    def _step(self, state: BranchState, tokens: Int[Tensor, " state"], depth: int) -> BranchState:
        text, rows = state.text.table, state.text.rows
        assert text.cache is not None  # the caller has checked that there is a next depth
        assert state.own is not None
        cached = text.cache.select(rows)
        if depth > 1:
            own_keys, own_values = (part[:, :, : depth - 1] for part in (state.own.keys, state.own.values))
            cached = LayerCache(
                torch.cat([cached.keys, own_keys], dim=2), torch.cat([cached.values, own_values], dim=2)
            )
        cache = make_cache([cached])
        length = text.attention_mask.shape[1]
        index = torch.arange(length, device=rows.device)
        before = (index < state.positions[:, None]) & text.attention_mask[rows]
        own = torch.ones((len(rows), depth), dtype=torch.bool, device=rows.device)
        carry = self._heads.forward_depth(
            depth + 1,
            state.carry[:, None],
            self._model.embed(tokens[:, None]),
            torch.cat([before, own], dim=1)[:, None, None],
            text.position_ids[rows, state.positions][:, None],
            cache,
        )
        (grown,) = read_cache(cache)
        return replace(
            state,
            latent=self._heads.read(depth + 1, carry)[:, 0],
            depths=state.depths.after_step(),
            own=LayerCache(grown.keys[:, :, length:], grown.values[:, :, length:]),
            carry=carry[:, 0],
        )
