"""A batch of texts that grow at their own pace, and the trunk's keys and values of each.

``SlotCache`` is one rectangle, allocated once. Row r's token at position i stands in slot i, however its prompt was
padded. A forward over q tokens a row says where each goes; a rejected draft stays where it is and is overwritten by
what comes next, since no query may see a slot past its own. So nothing is cropped, copied or shifted:

        slot      0   1   2   3   4   5   6
        row 0     the cat sat  .           .        length 4
        row 1     a   dog [x] [y]                   length 2, two drafts in flight

It is a Hugging Face cache: any trunk with attention layers takes it, given the slots' positions and a four-dimensional
mask (``worldmtp.decoding.trunk``).

``CachedTexts`` holds the tokens beside it. A forward appends *pending* tokens after what a row has cached, a chain or a
tree of them, and does not say which will stay; ``accept`` then makes some of them text. Rows that ended are dropped and
the last rows move into their places: nothing is computed again.

        cached            pending                     accepted: 2 of them
        a dog sat     |   on   [the] [a]        ->    a dog sat on the

A text may also be cut, and continued by somebody else. Then rows have as many pending tokens as they were given, and
what fills the rectangle behind them writes to slots that no text occupies.

Left out: paging, quantised keys, sliding windows that forget (a window is a mask here).
"""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin

from worldmtp.model.trunk import TrunkFeatures

IntArray = np.ndarray


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, (row, head, slot, head_dim); allocated at the first write."""

    is_sliding = False

    def __init__(self, owner: "SlotCache") -> None:
        super().__init__()
        self._owner = owner
        self._joint: Tensor | None = None
        """The tensor that keys and values are halves of, where ``update_joint`` made them."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate slots for the rows that are written."""
        capacity = self._owner.capacity
        self.keys, self.values = (
            states.new_zeros((*states.shape[:2], capacity, states.shape[3])) for states in (key_states, value_states)
        )
        self.is_initialized = True

    @property
    def states(self) -> tuple[Tensor, Tensor]:
        """Return keys and values.

        Raises:
            RuntimeError: nothing has been written yet.
        """
        if self.keys is None or self.values is None:
            raise RuntimeError("this cache is empty; run a prompt first.")
        return self.keys, self.values

    def update(
        self,
        key_states: Float[Tensor, "row head query head_dim"],
        value_states: Float[Tensor, "row head query value_dim"],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "row head key head_dim"], Float[Tensor, "row head key value_dim"]]:
        """Write at the slots given to ``SlotCache.write_at``, and return everything that queries may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.states
        return self._write(keys, key_states), self._write(values, value_states)

    def update_joint(
        self, states: Float[Tensor, "row key_and_value query head_dim"]
    ) -> tuple[Float[Tensor, "row head key head_dim"], Float[Tensor, "row head key head_dim"]]:
        """Do what ``update`` does, for keys and values that follow one another in one tensor, with one copy."""
        if not self.is_initialized:
            self._joint = states.new_zeros((*states.shape[:2], self._owner.capacity, states.shape[3]))
            self.keys, self.values = self._joint.chunk(2, dim=1)
            self.is_initialized = True
        assert self._joint is not None
        keys, values = self._write(self._joint, states).chunk(2, dim=1)
        return keys, values

    def _write(
        self, held: Float[Tensor, "all_rows head slot head_dim"], states: Float[Tensor, "row head query head_dim"]
    ) -> Float[Tensor, "row head key head_dim"]:
        owner, num_rows = self._owner, states.shape[0]
        if num_rows < held.shape[0]:
            held = held[:num_rows]
        if owner.common_start is not None:
            held[:, :, owner.common_start : owner.common_start + states.shape[2]] = states
        else:
            assert owner.slots is not None
            held.scatter_(2, owner.slots[:, None, :, None].expand_as(states), states)
        return held[:, :, : owner.extent]

    def move_rows(self, sources: Int[Tensor, " moved"], targets: Int[Tensor, " moved"]) -> None:
        """Copy whole rows over others."""
        for states in self.states:
            states[targets] = states[sources]

    def select_rows(self, sources: Int[Tensor, " row"]) -> None:
        """Make row i a copy of what row ``sources[i]`` was; rows may be repeated."""
        if self._joint is not None:
            self._joint = self._joint[sources]
            self.keys, self.values = self._joint.chunk(2, dim=1)
        else:
            self.keys, self.values = (states[sources] for states in self.states)

    def move_slots(self, sources: Int[Tensor, "row slot"], first: Int[Tensor, " row"]) -> None:
        """Copy chosen slots of each row to the slots from ``first`` on: a tree's accepted path becomes text."""
        num_rows, length = sources.shape
        targets = first[:, None] + torch.arange(length, device=first.device)
        for states in (whole[:num_rows] for whole in self.states):
            shape = (num_rows, states.shape[1], length, states.shape[3])
            chosen = states.gather(2, sources[:, None, :, None].expand(shape))
            states.scatter_(2, targets[:, None, :, None].expand(shape), chosen)

    def get_seq_length(self) -> int:
        """Return the slots in sight; positions are passed to the trunk, so nothing is counted from this."""
        return self._owner.extent

    def get_max_length(self) -> int:
        """Return the slots of a row."""
        return self._owner.capacity

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the keys; the whole mask is passed to the trunk, so nobody asks."""
        return self._owner.extent, 0


class SlotCache(Cache):
    """The caches of all layers. ``write_at`` says before each forward where its tokens go."""

    def __init__(self, num_layers: int, capacity: int) -> None:
        super().__init__(layers=[SlotLayer(self) for _ in range(num_layers)])
        self.capacity = capacity
        self.slots: Int[Tensor, "row query"] | None = None
        self.common_start: int | None = None
        self.extent = 0

    def write_at(self, slots: Int[Tensor, "row query"], extent: int, common_start: int | None = None) -> None:
        """Make the next forward write token q of row r to ``slots[r, q]`` and see the slots below ``extent``.

        ``common_start`` says that every row writes the same slots, from that one on: a copy instead of a scatter.

        Raises:
            ValueError: ``extent`` exceeds the capacity.
        """
        if extent > self.capacity:
            raise ValueError(f"slot {extent - 1} was asked for and rows have {self.capacity}; make a larger cache.")
        self.slots, self.extent, self.common_start = slots, extent, common_start

    def move_rows(self, sources: Int[Tensor, " moved"], targets: Int[Tensor, " moved"]) -> None:
        """Copy whole rows over others, in every layer: rows that ended make room."""
        for layer in self.layers:
            assert isinstance(layer, SlotLayer)
            layer.move_rows(sources, targets)

    def select_rows(self, sources: Int[Tensor, " row"]) -> None:
        """Make row i a copy of what row ``sources[i]`` was, in every layer; there may be more rows than before."""
        for layer in self.layers:
            assert isinstance(layer, SlotLayer)
            layer.select_rows(sources)

    def move_slots(self, sources: Int[Tensor, "row slot"], first: Int[Tensor, " row"]) -> None:
        """Copy chosen slots of each row to the slots from ``first`` on, in every layer."""
        for layer in self.layers:
            assert isinstance(layer, SlotLayer)
            layer.move_slots(sources, first)


@runtime_checkable
class TrunkRunner(Protocol):
    """What runs a trunk over new tokens, given a cache that ``write_at`` was called on."""

    @property
    def copied_bytes(self) -> int:
        """Return the bytes of the copies of weights that ``begin`` makes."""
        ...

    def begin(self, num_positions: int) -> None:
        """Prepare for a batch of texts shorter than ``num_positions``; weights may have changed since the last one."""
        ...

    def __call__(
        self,
        input_ids: Int[Tensor, "row query"],
        position_ids: Int[Tensor, "row query"],
        allowed: Bool[Tensor, "mask_row 1 query key"] | None,
        cache: SlotCache,
    ) -> TrunkFeatures:
        """Return everything that the heads and the LM head read.

        ``allowed`` is True where a query may attend to a slot; None allows all slots in sight.
        """
        ...


class CachedTexts:
    """Texts of which the trunk has read ``ids[r, : num_cached[r]]``; ``ids`` may hold more: the tokens to run next."""

    def __init__(self, runner: TrunkRunner, config: PreTrainedConfig, capacity: int, device: torch.device) -> None:
        text = config.get_text_config()
        self._runner = runner
        self.cache = SlotCache(text.num_hidden_layers, capacity)
        self.capacity = capacity
        self._max_position: int | None = getattr(text, "max_position_embeddings", None)
        self.device = device
        self.ids = torch.zeros((0, capacity), dtype=torch.long, device=device)
        self.num_cached: IntArray = np.zeros(0, dtype=np.int64)
        self.num_forwards = 0

    def __len__(self) -> int:
        return len(self.num_cached)

    def prefill(self, input_ids: Int[Tensor, "row length"], attention_mask: Shaped[Tensor, "..."]) -> TrunkFeatures:
        """Start with prompts, wherever their padding is; return features of each row's tokens from the first on.

        Raises:
            ValueError: a mask of another shape or dtype, a row that is all padding, or one longer than the capacity.
        """
        if attention_mask.shape != input_ids.shape or attention_mask.dtype != torch.bool:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)} and dtype {attention_mask.dtype}, expected "
                f"{tuple(input_ids.shape)}, as input_ids, and torch.bool."
            )
        input_ids = input_ids.long()
        lengths = attention_mask.sum(dim=1)
        empty = torch.nonzero(lengths == 0)[:, 0].tolist()
        if empty:
            raise ValueError(f"rows {empty} of the prompts are all padding; every row needs at least one token.")
        longest = int(lengths.max())
        if longest > self.capacity:
            raise ValueError(f"a prompt of {longest} tokens does not fit in {self.capacity} slots; make more room.")
        # Real tokens first, in their order: a stable sort of the mask.
        order = torch.argsort(~attention_mask, dim=1, stable=True)[:, :longest]
        self.ids = input_ids.new_zeros((len(input_ids), self.capacity))
        self.ids[:, :longest] = input_ids.gather(1, order)
        self.num_cached = np.zeros(len(input_ids), dtype=np.int64)
        self._runner.begin(self.capacity)
        features = self.forward(self.ids[:, :longest])
        self.num_cached = lengths.cpu().numpy()
        return features

    def forward(
        self,
        tokens: Int[Tensor, "row query"],
        offsets: Int[Tensor, " query"] | None = None,
        ancestors: Bool[Tensor, "query query"] | None = None,
        counts: IntArray | None = None,
    ) -> TrunkFeatures:
        """Run pending tokens of every row: a chain, or a tree where ``ancestors[i, j]`` says that i follows j.

        ``offsets`` are the tree's depths. Of a chain, ``counts[r]`` tokens of row r are real and the rest is padding,
        whose features mean nothing; the last slot must then be free in every row. Nothing is cached for good before
        ``accept``.
        """
        num_queries = tokens.shape[1]
        start = torch.from_numpy(self.num_cached).to(self.device)
        steps = torch.arange(num_queries, device=self.device)
        slots = start[:, None] + steps
        first = int(self.num_cached[0])
        same = bool((self.num_cached == first).all())
        extent = int(self.num_cached.max()) + num_queries
        if counts is not None:
            # Padding stands where the row's last real token does, in slots that are overwritten before they are seen.
            extent = int((self.num_cached + counts).max())
            slots = slots.clamp_max(self.capacity - 1)
            last = torch.from_numpy(np.maximum(counts - 1, 0)).to(self.device)
            offsets = torch.minimum(steps, last[:, None])
        self.cache.write_at(slots, extent, first if same else None)
        positions = slots if offsets is None else start[:, None] + offsets
        if self._max_position is not None and extent > self._max_position:
            positions = positions.clamp_max(self._max_position - 1)  # of drafts past the end, which nobody accepts
        self.num_forwards += 1
        return self._runner(tokens, positions, self._allowed(slots, extent, same, ancestors), self.cache)

    def accept(self, num_tokens: IntArray) -> None:
        """Make the first ``num_tokens`` pending tokens of each row text."""
        self.num_cached = self.num_cached + num_tokens

    def accept_path(self, slots: Int[Tensor, "row node"], num_tokens: IntArray) -> None:
        """Make the first ``num_tokens`` nodes of a path through a pending tree text; the path starts at the root."""
        start = torch.from_numpy(self.num_cached).to(self.device)
        self.cache.move_slots(start[:, None] + slots, start)
        self.accept(num_tokens)

    def cut(self, lengths: IntArray) -> None:
        """Shorten texts to so many tokens, of which the last becomes the newest: it is read again."""
        self.num_cached = lengths - 1

    @property
    def newest(self) -> Int[Tensor, "row 1"]:
        """Return each row's newest token, which the trunk has not read yet."""
        index = torch.from_numpy(self.num_cached).to(self.device)
        return self.ids.gather(1, index[:, None])

    def write(self, tokens: Int[Tensor, "row token"], after: int = 1) -> None:
        """Write tokens ``after`` places behind what is cached, where contexts are read from.

        ``after=0`` writes the newest token, 1 the drafts behind it, and so on.
        """
        places = torch.from_numpy(self.num_cached + after).to(self.device)[:, None]
        if tokens.shape[1] != 1:
            places = places + torch.arange(tokens.shape[1], device=self.device)
        self.ids.scatter_(1, places, tokens)

    def write_ragged(self, tokens: Int[Tensor, "row token"], counts: IntArray) -> None:
        """Write the first ``counts[r]`` tokens of each row behind its newest token."""
        rows, steps = np.nonzero(np.arange(tokens.shape[1]) < counts[:, None])
        places = self.num_cached[rows] + 1 + steps
        at, of, to = (torch.from_numpy(index).to(self.device) for index in (rows, steps, places))
        self.ids[at, to] = tokens[at, of]

    def drop(self, is_done: np.ndarray) -> tuple[IntArray, IntArray]:
        """Forget rows and move the last ones into their places; return where those were and where they are."""
        movers, holes = moves_into_holes(is_done)
        num_left = int((~is_done).sum())
        if len(movers):
            sources, targets = (torch.from_numpy(rows).to(self.device) for rows in (movers, holes))
            self.cache.move_rows(sources, targets)
            self.ids[targets] = self.ids[sources]
            self.num_cached[holes] = self.num_cached[movers]
        self.ids, self.num_cached = self.ids[:num_left], self.num_cached[:num_left].copy()
        return movers, holes

    def select(self, sources: IntArray) -> None:
        """Make row i a copy of row ``sources[i]``, pending tokens included; rows may be repeated or left out."""
        if np.array_equal(sources, np.arange(len(self))):
            return
        index = torch.from_numpy(sources).to(self.device)
        self.cache.select_rows(index)
        self.ids, self.num_cached = self.ids[index], self.num_cached[sources]

    def _allowed(
        self, slots: Tensor, extent: int, same: bool, ancestors: Tensor | None
    ) -> Bool[Tensor, "mask_row 1 query key"] | None:
        """Return who may see which slot; rows of equal length share one mask, and a single token needs none."""
        if same:
            slots = slots[:1]
            if slots.shape[1] == 1:
                return None
        keys = torch.arange(extent, device=self.device)
        if ancestors is None:
            return (keys <= slots[..., None])[:, None]
        offset = keys - slots[:, :1]  # of each slot in the tree; negative: text
        inside = (offset >= 0) & (offset < len(ancestors))
        related = ancestors[:, offset.clamp(0, len(ancestors) - 1)].transpose(0, 1)  # (row, query, key)
        return ((offset < 0)[:, None] | (inside[:, None] & related))[:, None]


def moves_into_holes(is_done: np.ndarray) -> tuple[IntArray, IntArray]:
    """Return which rows move where, so that those which are not done are the first ones: the last go into the holes."""
    num_left = int((~is_done).sum())
    return num_left + np.nonzero(~is_done[num_left:])[0], np.nonzero(is_done[:num_left])[0]


def move_rows(state: Tensor, sources: IntArray, targets: IntArray, num_left: int) -> Tensor:
    """Move rows of a drafter's state as ``CachedTexts.drop`` moved the texts."""
    if len(sources):
        to, of = (torch.from_numpy(rows).to(state.device) for rows in (targets, sources))
        state[to] = state[of]
    return state[:num_left]
