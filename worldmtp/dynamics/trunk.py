"""World model back-end ``oracle``: the trunk itself, whose true next latent costs one cached token step.

In a token MDP the next state is the prefix plus the token, so the trunk's own forward *is* the dynamics, and the upper
bound of all others; what is left to err are the reward, continuation and value heads that read it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from worldmtp.dynamics.latent import read_latent
from worldmtp.dynamics.protocol import Prediction, resolve_roots
from worldmtp.dynamics.states import LayerCache, Shared, StateTable, make_cache, read_cache
from worldmtp.model import MTPModel
from worldmtp.model.trunk import TrunkFeatures


@dataclass(frozen=True)
class TrunkCaches(StateTable):
    """The trunk's keys and values of a batch, layer by layer."""

    layers: tuple[LayerCache, ...]


@dataclass(frozen=True)
class CachedState(StateTable):
    """Prefixes with their trunk caches.

    State n is the first ``num_slots[n]`` slots of its row of the caches: padding on the left, then its prefix. What
    stands behind them belongs to later tokens of the same text, or to nobody.
    """

    latent: Float[Tensor, "state hidden"]
    attention_mask: Bool[Tensor, "state length"]
    num_slots: Int[Tensor, " state"]
    caches: Shared[TrunkCaches]


class OracleWorldModel:
    """World model back-end ``oracle``, as far as the trunk's context goes."""

    action_conditional = True
    max_horizon: int | None = None
    models_replies = False

    def __init__(self, model: MTPModel) -> None:
        self._model = model

    def encode(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        root_rows: Int[Tensor, " root"] | None = None,
        root_positions: Int[Tensor, " root"] | None = None,
        features: TrunkFeatures | None = None,
    ) -> CachedState:
        """Return the roots' states, from one trunk forward that keeps its cache, which ``features`` lack."""
        root_rows, root_positions = resolve_roots(attention_mask, root_rows, root_positions)
        cache = DynamicCache()
        hidden = self._model.trunk_features(input_ids, attention_mask, cache=cache).post_norm
        return CachedState(
            latent=hidden[root_rows, root_positions],
            attention_mask=attention_mask[root_rows],
            num_slots=root_positions + 1,
            caches=Shared(TrunkCaches(read_cache(cache)), root_rows),
        )

    def step(self, state: CachedState, tokens: Int[Tensor, " state"]) -> CachedState:
        """Return the states after one token through the trunk, over a gathered copy of the cache.

        A sliding window counts slots, so every prefix is moved to the right end: the token comes next to its last one.
        """
        if len(state) == 0:
            return state
        width = int(state.num_slots.max())
        slots = torch.arange(width, device=tokens.device) - (width - state.num_slots)[:, None]
        inside = slots.clamp_min(0)
        cache = make_cache([layer.gather(state.caches.rows, inside) for layer in state.caches.table.layers])
        real = state.attention_mask.gather(1, inside) & (slots >= 0)
        attention_mask = torch.cat([real, torch.ones_like(real[:, :1])], dim=1)
        hidden = self._model.trunk_features(tokens[:, None], attention_mask, cache=cache).post_norm
        return CachedState(
            latent=hidden[:, -1],
            attention_mask=attention_mask,
            num_slots=torch.full_like(state.num_slots, width + 1),
            caches=Shared(TrunkCaches(read_cache(cache)), torch.arange(len(tokens), device=tokens.device)),
        )

    def predict(self, state: CachedState, with_logits: bool = True) -> Prediction:
        """Return what is read off the true latents."""
        return read_latent(self._model, state.latent, with_logits)
