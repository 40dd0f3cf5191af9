"""Dynamics of heads whose depths attend to their own keys at earlier positions (``attention = "depth"``).

After tokens a_1 .. a_j the state is the depth-(j+1) latent h^{j+1}_p of DeepSeek-V3's causal chain (arXiv 2412.19437,
eq. 21-22). Of the keys depth d attends to, those at p-d+2 .. p-1 have read *imagined* tokens and must be recomputed on
the branch. A step into depth d therefore runs the block on the d - 1 positions p-d+2 .. p, whose inputs are exactly the
d - 1 tokens so far, over the cached keys of the positions before them, which saw real tokens only. A horizon of K - 1
costs K (K - 1) / 2 one-layer token steps.

        depth d = 3, root p            position   p-3  p-2 | p-1   p
                                       token read p-1   p  | a_1  a_2        | = recomputed on the branch

Left out: going beyond depth K by reusing the last block (FastMTP), for which the text's own keys would be needed.
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
class ChainedText(StateTable):
    """What one pass over real text leaves behind for every root in it.

    ``carries[k - 1]`` and ``caches[k - 2]`` belong to depth k.
    """

    attention_mask: Bool[Tensor, "batch length"]
    position_ids: Int[Tensor, "batch length"]
    carries: tuple[Float[Tensor, "batch length _"], ...]
    caches: tuple[LayerCache, ...]


@dataclass(frozen=True)
class ChainedState(HeadState):
    """Branches of real prefixes.

    ``taken`` are the tokens appended so far, oldest first. ``window`` holds the carries of the current depth at the
    positions recomputed on the branch, the root's own last; before the first token it is the root's.
    """

    text: Shared[ChainedText]
    positions: Int[Tensor, " state"]
    taken: Int[Tensor, "state taken"]
    window: Float[Tensor, "state window width"]


class ChainedDynamics:
    """The ``HeadDynamics`` of heads whose depths attend to their own keys."""

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
    ) -> ChainedState:
        """Return the roots' states, from one teacher-forced pass of each depth, which keeps its keys and values."""
        position_ids = position_ids_from_attention_mask(attention_mask)
        carries, caches = [self._heads.begin(features)], list[LayerCache]()
        allowed = causal_mask(attention_mask)
        for depth in self._heads.depths:
            cache = DynamicCache()
            # The last depth - 1 positions read past the text; what they see is never read, as no root needs it.
            ahead = self._model.embed(torch.roll(input_ids, 1 - depth, dims=1))
            carries.append(self._heads.forward_depth(depth, carries[-1], ahead, allowed, position_ids, cache))
            caches += read_cache(cache)
        if len(caches) < len(self._heads.depths):
            raise RuntimeError(
                "the heads' layers kept no keys, as they do not under gradient checkpointing in training mode; call "
                "model.eval() or disable gradient checkpointing to imagine."
            )
        return ChainedState(
            latent=features.post_norm[root_rows, root_positions],
            depths=Depths.at_roots(root_rows),
            text=Shared(ChainedText(attention_mask, position_ids, tuple(carries), tuple(caches)), root_rows),
            positions=root_positions,
            taken=input_ids.new_zeros((len(root_rows), 0)),
            window=carries[0][root_rows, root_positions][:, None],
        )

    def step(self, state: ChainedState, tokens: Int[Tensor, " state"]) -> ChainedState:
        """Return the next depth at the root's position, and at the positions before it that read imagined tokens."""
        return step_by_depth(self._step, state, tokens)

    def _step(self, state: ChainedState, tokens: Int[Tensor, " state"], current: int) -> ChainedState:
        depth = current + 1
        taken = torch.cat([state.taken[:, : current - 1], tokens[:, None]], dim=1)
        text, rows = state.text.table, state.text.rows
        offsets = torch.arange(2 - depth, 1, device=rows.device)
        window_positions = state.positions[:, None] + offsets
        reachable = window_positions.clamp_min(0)
        inside = (window_positions >= 0) & text.attention_mask[rows[:, None], reachable]
        previous = state.window[:, : max(1, current - 1)]
        if depth > 2:
            # The oldest of the new window's inputs read the last real token: the encoder has it.
            oldest = text.carries[depth - 2][rows, reachable[:, 0]][:, None]
            previous = torch.cat([oldest, previous], dim=1)
        index = torch.arange(text.attention_mask.shape[1], device=rows.device)
        before = (index <= (state.positions + 1 - depth)[:, None]) & text.attention_mask[rows]
        causal = torch.ones((depth - 1, depth - 1), dtype=torch.bool, device=rows.device).tril()
        within = causal & (inside[:, None, :] | torch.eye(depth - 1, dtype=torch.bool, device=rows.device))
        mask = torch.cat([before[:, None, :].expand(-1, depth - 1, -1), within], dim=-1)[:, None]
        window = self._heads.forward_depth(
            depth,
            previous,
            self._model.embed(taken),
            mask,
            text.position_ids[rows[:, None], reachable],
            cache=make_cache([text.caches[depth - 2].select(rows)]),
        )
        return replace(
            state,
            latent=self._heads.read(depth, window[:, -1:])[:, 0],
            depths=state.depths.after_step(),
            taken=taken,
            window=window,
        )
