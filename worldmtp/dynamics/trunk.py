"""World model back-end ``oracle``: the trunk itself, whose true next latent costs one cached token step.

In a token MDP the next state is the prefix plus the token, so the trunk's own forward *is* the dynamics, and the upper
bound of all others; what is left to err are the reward, continuation and value heads that read it.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from worldmtp.dynamics.latent import read_latent
from worldmtp.dynamics.protocol import Prediction, resolve_roots
from worldmtp.dynamics.states import Depths, LayerCache, Shared, StateTable, make_cache, read_cache
from worldmtp.model import MTPModel
from worldmtp.model.trunk import TrunkFeatures


@dataclass(frozen=True)
class TrunkText(StateTable):
    """The trunk's keys and values of a batch of texts, layer by layer."""

    attention_mask: Bool[Tensor, "batch length"]
    layers: tuple[LayerCache, ...]


@dataclass(frozen=True)
class CachedState(StateTable):
    """Prefixes with their trunk caches: of the text that all branches of it share, and of the tokens since.

    State n begins with the first ``num_slots[n]`` slots of its text, padding on the left included; what stands behind
    them belongs to later tokens of the same text. ``own`` are the keys and values of the tokens appended since, oldest
    first, so that a node of a search takes the memory of its own branch and no copy of the prefix.
    """

    latent: Float[Tensor, "state hidden"]
    depths: Depths
    text: Shared[TrunkText]
    num_slots: Int[Tensor, " state"]
    own: tuple[LayerCache, ...]


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
        layers = read_cache(cache)
        nothing = [layer.keys[:1, :, :0].expand(len(root_rows), -1, -1, -1) for layer in layers]
        return CachedState(
            latent=hidden[root_rows, root_positions],
            depths=Depths.at_roots(root_rows),
            text=Shared(TrunkText(attention_mask, layers), root_rows),
            num_slots=root_positions + 1,
            own=tuple(LayerCache(empty, empty) for empty in nothing),
        )

    def step(self, state: CachedState, tokens: Int[Tensor, " state"]) -> CachedState:
        """Return the states after one token through the trunk, over a gathered copy of the cache.

        A sliding window counts slots, so every prefix is moved to the right end: the token comes next to its last one.
        """
        if len(state) == 0:
            return replace(state, depths=state.depths.after_step())
        text, rows, deepest = state.text.table, state.text.rows, state.depths.deepest - 1
        taken = state.depths.each - 1
        lengths = state.num_slots + taken
        width = int(lengths.max())
        slots = torch.arange(width, device=tokens.device) - (width - lengths)[:, None]
        inside = slots.clamp_min(0).minimum(state.num_slots[:, None] - 1)
        real = (slots >= 0) & (text.attention_mask[rows[:, None], inside] | (slots >= state.num_slots[:, None]))
        # The last slots: those of the tokens since, as many as the row of the most has.
        numbers = torch.arange(deepest, device=tokens.device) - (deepest - taken)[:, None]
        cache = make_cache(
            [
                _followed(layer.gather(rows, inside), own, numbers)
                for layer, own in zip(text.layers, state.own, strict=True)
            ]
        )
        attention_mask = torch.cat([real, torch.ones_like(real[:, :1])], dim=1)
        hidden = self._model.trunk_features(tokens[:, None], attention_mask, cache=cache).post_norm
        newest = [LayerCache(layer.keys[:, :, -1:], layer.values[:, :, -1:]) for layer in read_cache(cache)]
        return replace(
            state,
            latent=hidden[:, -1],
            depths=state.depths.after_step(),
            own=tuple(_appended(own, new, taken, deepest) for own, new in zip(state.own, newest, strict=True)),
        )

    def predict(self, state: CachedState, with_logits: bool = True) -> Prediction:
        """Return what is read off the true latents."""
        return read_latent(self._model, state.latent, with_logits)


def _followed(text: LayerCache, own: LayerCache, numbers: Int[Tensor, "state own"]) -> LayerCache:
    """Put own entries into the last slots of a fresh copy of a text's; a negative number leaves the text's there."""
    places = numbers.shape[1]
    if places:
        is_own, at = (numbers >= 0)[:, None, :, None], numbers.clamp_min(0)
        mine = own.gather(torch.arange(len(at), device=at.device), at)
        for copy, values in ((text.keys, mine.keys), (text.values, mine.values)):
            copy[:, :, -places:] = torch.where(is_own, values, copy[:, :, -places:])
    return text


def _appended(own: LayerCache, new: LayerCache, taken: Int[Tensor, " state"], deepest: int) -> LayerCache:
    """Return the own entries with one more behind those that each row has taken."""
    rows = torch.arange(len(taken), device=taken.device)

    def appended(values: Tensor, one: Tensor) -> Tensor:
        longer = torch.cat([values[:, :, :deepest], one], dim=2)
        longer[rows, :, taken] = one[:, :, 0]
        return longer

    return LayerCache(appended(own.keys, new.keys), appended(own.values, new.values))
