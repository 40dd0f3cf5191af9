"""The chained MTP heads as latent dynamics: (latent, token) -> next latent.

A root is a real prefix ending at position p with the trunk's hidden state h^1_p. After actions a_1 .. a_j the state is
the depth-(j+1) latent h^{j+1}_p of DeepSeek-V3's causal chain (arXiv 2412.19437, eq. 21-22), the very tensor the
teacher-forced forward computes when a_1 .. a_j are the real tokens; a test holds the two equal.

That equality needs care: depth d at position i has read token i + d - 1, so of the keys depth d attends to, those at
p-d+2 .. p-1 have read *imagined* tokens and must be recomputed on the branch. A step into depth d therefore runs the
block on the d - 1 positions p-d+2 .. p, whose inputs are exactly the d - 1 actions so far, over the cached keys of the
positions before them, which saw real tokens only. A horizon of K - 1 costs K (K - 1) / 2 one-layer token steps.

        depth d = 3, root p            position   p-3  p-2 | p-1   p
                                       token read p-1   p  | a_1  a_2        | = recomputed on the branch

Left out: going beyond depth K by reusing the last block (FastMTP); ``max_horizon`` says so.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from worldmtp.dynamics.caches import LayerCache, make_cache, read_cache
from worldmtp.dynamics.protocol import ImaginedRollout, Policy, Prediction
from worldmtp.dynamics.readout import read_latent
from worldmtp.dynamics.rollout import imagine
from worldmtp.dynamics.roots import resolve_roots
from worldmtp.heads.base import ActionConditionalHead
from worldmtp.model import MTPModel
from worldmtp.targets import position_ids_from_attention_mask


@dataclass(frozen=True)
class _Context:
    """What one pass over real text leaves behind for every root in it; shared, never copied per branch."""

    attention_mask: Bool[Tensor, "batch length"]
    position_ids: Int[Tensor, "batch length"]
    latents: tuple[Float[Tensor, "batch length hidden"], ...]
    caches: tuple[LayerCache, ...]


@dataclass(frozen=True)
class ChainedState:
    """Branches of real prefixes.

    ``actions`` are the tokens appended so far, oldest first. ``window`` holds the latents of the current depth at the
    positions recomputed on the branch, the root's own last; before the first action it is the root's hidden state.
    """

    context: _Context
    rows: Int[Tensor, " state"]
    positions: Int[Tensor, " state"]
    actions: Int[Tensor, "state taken"]
    window: Float[Tensor, "state window hidden"]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def latent(self) -> Float[Tensor, "state hidden"]:
        """The state itself."""
        return self.window[:, -1]

    def select(self, rows: Int[Tensor, " selected"]) -> "ChainedState":
        """States by row; the context is shared."""
        return replace(
            self,
            rows=self.rows[rows],
            positions=self.positions[rows],
            actions=self.actions[rows],
            window=self.window[rows],
        )


class MTPWorldModel:
    """World model back-end ``mtp``; gradients are the caller's business (``torch.no_grad`` to imagine)."""

    def __init__(self, model: MTPModel) -> None:
        if not isinstance(model.heads, ActionConditionalHead):
            raise TypeError(
                f"head={model.config.head!r} gives the policy-averaged marginal of future tokens; dynamics needs "
                "action-conditional heads, such as head='sequential'."
            )
        self._model = model
        self._heads = model.heads

    @property
    def action_conditional(self) -> bool:
        """Sequential heads read the token they are stepped by."""
        return True

    @property
    def max_horizon(self) -> int | None:
        """Depth 1 is the state itself; each further depth is one step."""
        return self._model.config.depth - 1

    def encode(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        root_rows: Int[Tensor, " root"] | None = None,
        root_positions: Int[Tensor, " root"] | None = None,
    ) -> ChainedState:
        """One trunk forward and one teacher-forced pass of each depth, which keeps the depth's keys and values."""
        root_rows, root_positions = resolve_roots(attention_mask, root_rows, root_positions)
        context = self._context(input_ids, attention_mask)
        return ChainedState(
            context=context,
            rows=root_rows,
            positions=root_positions,
            actions=input_ids.new_zeros((len(root_rows), 0)),
            window=context.latents[0][root_rows, root_positions][:, None],
        )

    def _context(self, input_ids: Tensor, attention_mask: Tensor) -> _Context:
        model, depth = self._model, self._model.config.depth
        position_ids = position_ids_from_attention_mask(attention_mask)
        hidden = model.base_model(
            input_ids=input_ids, attention_mask=attention_mask.long(), position_ids=position_ids, use_cache=False
        ).last_hidden_state
        latents, caches = [hidden], list[LayerCache]()
        length = input_ids.shape[1]
        causal = torch.ones((length, length), dtype=torch.bool, device=input_ids.device).tril()
        mask = causal[None, None] & attention_mask[:, None, None, :]
        for level in range(2, depth + 1):
            cache = DynamicCache()
            # The last level - 1 positions read past the text; what they see is never read, as no root needs it.
            ahead = torch.roll(input_ids, 1 - level, dims=1)
            latents.append(
                self._heads.forward_depth(level, latents[-1], model.embed(ahead), mask, position_ids, cache=cache)
            )
            caches += read_cache(cache)
        return _Context(attention_mask, position_ids, tuple(latents), tuple(caches))

    def step(self, state: ChainedState, actions: Int[Tensor, " state"]) -> ChainedState:
        """The next depth at the root's position, and at the positions before it that read imagined tokens."""
        taken = torch.cat([state.actions, actions[:, None]], dim=1)
        depth = taken.shape[1] + 1
        if depth > self._model.config.depth:
            raise ValueError(
                f"step {taken.shape[1]} exceeds the {self.max_horizon} steps these heads can take; "
                f"train a model with depth={depth}."
            )
        context, rows = state.context, state.rows
        offsets = torch.arange(2 - depth, 1, device=rows.device)
        window_positions = state.positions[:, None] + offsets
        reachable = window_positions.clamp_min(0)
        inside = (window_positions >= 0) & context.attention_mask[rows[:, None], reachable]
        previous = state.window
        if depth > 2:
            # The oldest of the new window's inputs read the last real token: the encoder has it.
            oldest = context.latents[depth - 2][rows, reachable[:, 0]][:, None]
            previous = torch.cat([oldest, previous], dim=1)
        index = torch.arange(context.attention_mask.shape[1], device=rows.device)
        before = (index <= (state.positions + 1 - depth)[:, None]) & context.attention_mask[rows]
        causal = torch.ones((depth - 1, depth - 1), dtype=torch.bool, device=rows.device).tril()
        within = causal & (inside[:, None, :] | torch.eye(depth - 1, dtype=torch.bool, device=rows.device))
        mask = torch.cat([before[:, None, :].expand(-1, depth - 1, -1), within], dim=-1)[:, None]
        window = self._heads.forward_depth(
            depth,
            previous,
            self._model.embed(taken),
            mask,
            context.position_ids[rows[:, None], reachable],
            cache=make_cache([context.caches[depth - 2].select(rows)]),
        )
        return replace(state, actions=taken, window=window)

    def predict(self, state: ChainedState, with_logits: bool = True) -> Prediction:
        """Read the latent."""
        return read_latent(self._model, state.latent, with_logits)

    def imagine(
        self, state: ChainedState, horizon: int, policy: Policy, generator: torch.Generator | None
    ) -> ImaginedRollout:
        """See ``worldmtp.dynamics.rollout.imagine``."""
        return imagine(self, state, horizon, policy, generator)
