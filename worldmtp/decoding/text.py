"""A batch of texts that grow at their own pace, and what the trunk has seen of each.

``CachedTexts`` is the ground of every decoder here: tokens, the trunk's keys and values of all but the newest, and one
rule for both. A forward appends *pending* tokens after what a row has cached, a chain or a tree of them, and says
nothing about which will stay; ``accept`` then makes some of them text. Rows that ended are dropped, and others moved
into their places: nothing is computed again.

        cached            pending                     accepted: 2 of them
        a dog sat     |   on   [the] [a]        ->    a dog sat on the
"""

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from worldmtp.decoding.slot_cache import SlotCache
from worldmtp.decoding.trunk import TrunkRunner
from worldmtp.model.trunk import TrunkFeatures

IntArray = np.ndarray


class CachedTexts:
    """Rows ``0 .. len - 1`` are alive; ``ids[r, : num_cached[r]]`` is what the trunk has seen of row r.

    ``ids`` may hold tokens beyond that: those to be run next.
    """

    def __init__(
        self, runner: TrunkRunner, num_layers: int, capacity: int, device: torch.device, max_position: int | None = None
    ) -> None:
        self._runner = runner
        self.cache = SlotCache(num_layers, capacity)
        self.capacity = capacity
        self.max_position = max_position
        self.device = device
        self.ids = torch.zeros((0, capacity), dtype=torch.long, device=device)
        self.num_cached: IntArray = np.zeros(0, dtype=np.int64)
        self.num_forwards = 0

    def __len__(self) -> int:
        return len(self.num_cached)

    def prefill(self, input_ids: Int[Tensor, "row length"], attention_mask: Shaped[Tensor, "..."]) -> TrunkFeatures:
        """Start with prompts, wherever their padding is; features of each row's tokens from the first on.

        Raises:
            ValueError: a mask of another shape or kind, or a row that is all padding or longer than there are slots.
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
    ) -> TrunkFeatures:
        """Run pending tokens of every row: a chain, or a tree of which ``ancestors[i, j]`` says that i follows j.

        ``offsets`` are the tree's depths. Nothing is cached for good before ``accept``.
        """
        num_queries = tokens.shape[1]
        start = torch.from_numpy(self.num_cached).to(self.device)
        steps = torch.arange(num_queries, device=self.device)
        slots = start[:, None] + steps
        first = int(self.num_cached[0])
        same = bool((self.num_cached == first).all())
        extent = int(self.num_cached.max()) + num_queries
        self.cache.write_at(slots, extent, first if same else None)
        positions = slots if offsets is None else start[:, None] + offsets
        if self.max_position is not None and extent > self.max_position:
            positions = positions.clamp_max(self.max_position - 1)  # of drafts past the end, which nobody accepts
        self.num_forwards += 1
        return self._runner(tokens, positions, self._allowed(slots, extent, same, ancestors), self.cache)

    def accept(self, num_tokens: IntArray) -> None:
        """The first so many pending tokens of each row are text now."""
        self.num_cached = self.num_cached + num_tokens

    def accept_path(self, slots: Int[Tensor, "row node"], num_tokens: IntArray) -> None:
        """Of a pending tree, the nodes of a path from its root; their first ``num_tokens`` are text now."""
        start = torch.from_numpy(self.num_cached).to(self.device)
        self.cache.move_slots(start[:, None] + slots, start)
        self.accept(num_tokens)

    def drop(self, is_done: np.ndarray) -> tuple[IntArray, IntArray]:
        """Forget rows; the last ones move into their places. Where they were and where they are is returned."""
        num_left = int((~is_done).sum())
        holes = np.nonzero(is_done[:num_left])[0]
        movers = num_left + np.nonzero(~is_done[num_left:])[0]
        if len(movers):
            sources, targets = (torch.from_numpy(rows).to(self.device) for rows in (movers, holes))
            self.cache.move_rows(sources, targets)
            self.ids[targets] = self.ids[sources]
            self.num_cached[holes] = self.num_cached[movers]
        self.ids, self.num_cached = self.ids[:num_left], self.num_cached[:num_left].copy()
        return movers, holes

    def select(self, sources: IntArray) -> None:
        """Row i becomes a copy of row ``sources[i]``, its pending tokens included; rows may be repeated or left out."""
        if np.array_equal(sources, np.arange(len(self))):
            return
        index = torch.from_numpy(sources).to(self.device)
        self.cache.select_rows(index)
        self.ids, self.num_cached = self.ids[index], self.num_cached[sources]

    def _allowed(
        self, slots: Tensor, extent: int, same: bool, ancestors: Tensor | None
    ) -> Bool[Tensor, "mask_row 1 query key"] | None:
        """Who may look at which slot; rows of equal length share one mask, and a single token needs none."""
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
