"""The trunk itself as world model: the true next latent for one cached token step. The upper bound of all others.

In a token MDP the next state is the prefix plus the token, so the trunk's own forward *is* the dynamics; what is left
to err are the reward, continuation and value heads that read it.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from worldmtp.dynamics.caches import LayerCache, make_cache, read_cache
from worldmtp.dynamics.protocol import Prediction
from worldmtp.dynamics.readout import read_latent
from worldmtp.dynamics.roots import resolve_roots
from worldmtp.model import MTPModel
from worldmtp.model.trunk import TrunkFeatures, position_ids_from_attention_mask


@dataclass(frozen=True)
class CachedState:
    """Prefixes with their trunk caches, one ``LayerCache`` a layer.

    State n is the first ``num_slots[n]`` slots of row ``cache_rows[n]``: padding on the left, then its prefix. What
    stands behind them belongs to later tokens of the same text.
    """

    latent: Float[Tensor, "state hidden"]
    attention_mask: Bool[Tensor, "state length"]
    num_slots: Int[Tensor, " state"]
    next_position: Int[Tensor, " state"]
    caches: tuple[LayerCache, ...]
    cache_rows: Int[Tensor, " state"]

    def __len__(self) -> int:
        return len(self.latent)

    def select(self, rows: Int[Tensor, " selected"]) -> "CachedState":
        """States by row; caches are shared until the next step."""
        return replace(
            self,
            latent=self.latent[rows],
            attention_mask=self.attention_mask[rows],
            num_slots=self.num_slots[rows],
            next_position=self.next_position[rows],
            cache_rows=self.cache_rows[rows],
        )


class OracleWorldModel:
    """World model back-end ``oracle``."""

    action_conditional = True

    def __init__(self, model: MTPModel) -> None:
        self._model = model

    @property
    def max_horizon(self) -> int | None:
        """As far as the trunk's context goes."""
        return None

    def encode(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        root_rows: Int[Tensor, " root"] | None = None,
        root_positions: Int[Tensor, " root"] | None = None,
        features: TrunkFeatures | None = None,
    ) -> CachedState:
        """One trunk forward that keeps its cache, which ``features`` lack; roots share it."""
        root_rows, root_positions = resolve_roots(attention_mask, root_rows, root_positions)
        position_ids = position_ids_from_attention_mask(attention_mask)
        cache = DynamicCache()
        hidden = self._model.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask.long(),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return CachedState(
            latent=hidden[root_rows, root_positions],
            attention_mask=attention_mask[root_rows],
            num_slots=root_positions + 1,
            next_position=position_ids[root_rows, root_positions] + 1,
            caches=read_cache(cache),
            cache_rows=root_rows,
        )

    def step(self, state: CachedState, actions: Int[Tensor, " state"]) -> CachedState:
        """One token through the trunk over a gathered copy of the cache.

        A sliding window counts slots, so every prefix is moved to the right end: the token comes next to its last one.
        """
        width = int(state.num_slots.max())
        slots = torch.arange(width, device=actions.device) - (width - state.num_slots)[:, None]
        inside = slots.clamp_min(0)
        cache = make_cache([layer.gather(state.cache_rows, inside) for layer in state.caches])
        real = state.attention_mask.gather(1, inside) & (slots >= 0)
        attention_mask = torch.cat([real, torch.ones_like(real[:, :1])], dim=1)
        hidden = self._model.base_model(
            input_ids=actions[:, None],
            attention_mask=attention_mask.long(),
            position_ids=state.next_position[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return CachedState(
            latent=hidden[:, -1],
            attention_mask=attention_mask,
            num_slots=torch.full_like(state.num_slots, width + 1),
            next_position=state.next_position + 1,
            caches=read_cache(cache),
            cache_rows=torch.arange(len(actions), device=actions.device),
        )

    def predict(self, state: CachedState, with_logits: bool = True) -> Prediction:
        """Read the true latent."""
        return read_latent(self._model, state.latent, with_logits)
