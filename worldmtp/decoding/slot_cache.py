"""Keys and values of a batch whose rows are of different lengths: one rectangle, allocated once, without holes.

Row r's token at position i stands in slot i, whatever the padding of its prompt was. A forward over q tokens a row
says where each goes; a draft that is rejected stays where it is and is overwritten by what comes next, since no query
may see a slot past its own. So nothing is cropped, copied or shifted, and rows advance at their own pace:

        slot      0   1   2   3   4   5   6
        row 0     the cat sat  .           .        length 4
        row 1     a   dog [x] [y]                   length 2, two drafts in flight

``SlotCache`` is a Hugging Face cache: any trunk with attention layers takes it, given slots' positions and a
four-dimensional mask (``worldmtp.decoding.trunk``). Left out: paging, quantised keys, sliding windows that forget (a
window is a mask here).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin


@dataclass(frozen=True)
class CacheSize:
    """What a cache takes; ``num_bytes`` is the product of all but the first, twice for keys and values."""

    num_rows: int
    capacity: int
    num_layers: int
    num_heads: int
    head_dim: int
    bytes_per_number: int

    @property
    def num_bytes(self) -> int:
        """Of keys and values."""
        numbers = self.num_rows * self.capacity * self.num_layers * self.num_heads * self.head_dim
        return 2 * numbers * self.bytes_per_number

    def __str__(self) -> str:
        return (
            f"2 x {self.num_rows} rows x {self.capacity} slots x {self.num_layers} layers x {self.num_heads} key-value "
            f"heads x {self.head_dim} numbers x {self.bytes_per_number} bytes = {self.num_bytes / 2**20:.1f} MiB"
        )


def cache_size(config: PreTrainedConfig, num_rows: int, capacity: int, dtype: torch.dtype) -> CacheSize:
    """The size of the cache of a trunk with that config."""
    text = config.get_text_config()
    num_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return CacheSize(num_rows, capacity, text.num_hidden_layers, num_heads, head_dim, dtype.itemsize)


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, (row, head, slot, head_dim); allocated at the first write."""

    is_sliding = False

    def __init__(self, owner: "SlotCache") -> None:
        super().__init__()
        self._owner = owner
        self._joint: Tensor | None = None
        """What keys and values are halves of, where ``update_joint`` made them."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for the rows that are written."""
        capacity = self._owner.capacity
        self.keys, self.values = (
            states.new_zeros((*states.shape[:2], capacity, states.shape[3])) for states in (key_states, value_states)
        )
        self.is_initialized = True

    @property
    def states(self) -> tuple[Tensor, Tensor]:
        """Keys and values.

        Raises:
            RuntimeError: nothing was written yet.
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
        """Write at the slots the owner was told, and give all that may be looked at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.states
        return self._write(keys, key_states), self._write(values, value_states)

    def update_joint(
        self, states: Float[Tensor, "row key_and_value query head_dim"]
    ) -> tuple[Float[Tensor, "row head key head_dim"], Float[Tensor, "row head key head_dim"]]:
        """As ``update`` of keys and values that stand after one another in one tensor, with one copy."""
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
        """Row i is a copy of what row ``sources[i]`` was; rows may be repeated."""
        if self._joint is not None:
            self._joint = self._joint[sources]
            self.keys, self.values = self._joint.chunk(2, dim=1)
        else:
            self.keys, self.values = (states[sources] for states in self.states)

    def move_slots(self, sources: Int[Tensor, "row slot"], first: Int[Tensor, " row"]) -> None:
        """Copy chosen slots of each row to those from ``first`` on: a tree's accepted path becomes text."""
        num_rows, length = sources.shape
        targets = first[:, None] + torch.arange(length, device=first.device)
        for states in (whole[:num_rows] for whole in self.states):
            shape = (num_rows, states.shape[1], length, states.shape[3])
            chosen = states.gather(2, sources[:, None, :, None].expand(shape))
            states.scatter_(2, targets[:, None, :, None].expand(shape), chosen)

    def get_seq_length(self) -> int:
        """Slots in sight; positions are given to the trunk, so nothing is counted from this."""
        return self._owner.extent

    def get_max_length(self) -> int:
        """Slots of a row."""
        return self._owner.capacity

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys; the mask is given whole, so nobody asks."""
        return self._owner.extent, 0


class SlotCache(Cache):
    """Caches of all layers; see the module. Before each forward ``write_at`` says where its tokens go."""

    def __init__(self, num_layers: int, capacity: int) -> None:
        super().__init__(layers=[SlotLayer(self) for _ in range(num_layers)])
        self.capacity = capacity
        self.slots: Int[Tensor, "row query"] | None = None
        self.common_start: int | None = None
        self.extent = 0

    def write_at(self, slots: Int[Tensor, "row query"], extent: int, common_start: int | None = None) -> None:
        """The next forward writes token q of row r to ``slots[r, q]`` and looks at the slots below ``extent``.

        ``common_start`` says that every row writes the same slots, that one and those after it: a copy, no scatter.

        Raises:
            ValueError: that is more than there are.
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
        """Row i is a copy of what row ``sources[i]`` was, in every layer: more rows than before, or fewer."""
        for layer in self.layers:
            assert isinstance(layer, SlotLayer)
            layer.select_rows(sources)

    def move_slots(self, sources: Int[Tensor, "row slot"], first: Int[Tensor, " row"]) -> None:
        """Copy chosen slots of each row to those from ``first`` on, in every layer."""
        for layer in self.layers:
            assert isinstance(layer, SlotLayer)
            layer.move_slots(sources, first)
