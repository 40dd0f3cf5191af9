"""States as tables: selected, stored and merged by row, whatever a back-end keeps of them.

A state is a frozen dataclass whose fields all have one entry for each row of the batch: a tensor with the rows on its
first axis, another table, a tuple of these, or None. So ``select``, ``put`` and ``cat`` are written once, here, and
``reserve`` with ``store``, which fill a table row by row without copying it.

* ``LayerCache``: keys and values, read from a Hugging Face cache and made into one.
* ``Shared``: what many rows read of one text; a row holds its number there, and no copy.
* ``Depths``: how far each row has come, since rows of one batch may have taken different numbers of steps.

Where tables of different widths meet (a short text and a long one, one step taken and three) the narrower is filled up
with zeros at the end of its axes; a back-end reads no more of a row than the row's own depth or length.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import Cache, DynamicCache

Table = TypeVar("Table", bound="StateTable")


@dataclass(frozen=True)
class StateTable:
    """Rows of states; a back-end's state is a frozen dataclass that inherits from it and adds the fields."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def select(self: Table, rows: Int[Tensor, " selected"]) -> Table:
        """Return some rows, in any order and with repeats."""
        return replace(self, **{name: _select(value, rows) for name, value in _columns(self)})

    def put(self: Table, rows: Int[Tensor, " other"], other: Table) -> Table:
        """Return these rows with those of ``other`` in place of ``rows``, which are all different."""
        pairs = zip(_columns(self), _columns(other), strict=True)
        return replace(self, **{name: _put(mine, rows, new) for (name, mine), (_, new) in pairs})

    @classmethod
    def cat(cls: type[Table], tables: Sequence[Table]) -> Table:
        """Return the rows of all tables, one table after another."""
        columns = [dict(_columns(table)) for table in tables]
        return cls(**{name: _cat([column[name] for column in columns]) for name in columns[0]})

    def reserve(self: Table, num_rows: int) -> Table:
        """Return a table of so many rows that begins with a copy of these; ``store`` fills the others."""
        return replace(self, **{name: _reserve(value, num_rows) for name, value in _columns(self)})

    def store(self: Table, start: int, other: Table) -> Table:
        """Write ``other`` over the rows from ``start`` on, in place, and return the table to go on with.

        Nothing else is copied unless ``other`` is the wider one. For tables that ``reserve`` made: nobody else's.
        """
        pairs = zip(_columns(self), _columns(other), strict=True)
        return replace(self, **{name: _store(mine, start, new) for (name, mine), (_, new) in pairs})

    @property
    def row_bytes(self) -> int:
        """The memory that a row takes, without what it shares with others."""
        return sum(_row_bytes(value) for _, value in _columns(self))


@dataclass(frozen=True)
class LayerCache(StateTable):
    """One layer's keys and values."""

    keys: Float[Tensor, "batch heads length head_dim"]
    values: Float[Tensor, "batch heads length head_dim"]

    def gather(self, rows: Int[Tensor, " selected"], slots: Int[Tensor, "selected width"]) -> "LayerCache":
        """Return a copy of some rows, repeats allowed, each with the slots of its own."""

        def gathered(values: Tensor) -> Tensor:
            return values.transpose(1, 2)[rows[:, None], slots].transpose(1, 2)

        return LayerCache(gathered(self.keys), gathered(self.values))


def read_cache(cache: Cache) -> tuple[LayerCache, ...]:
    """Return every layer of a cache.

    Raises:
        TypeError: a layer keeps no keys and values (linear attention, state spaces), so prefixes cannot be branched.
    """
    layers = []
    for index, layer in enumerate(cache.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if not isinstance(keys, Tensor) or not isinstance(values, Tensor):
            raise TypeError(
                f"layer {index} caches a {type(layer).__name__} without keys and values; branching a prefix needs a "
                "trunk of attention layers."
            )
        layers.append(LayerCache(keys, values))
    return tuple(layers)


def make_cache(layers: Sequence[LayerCache]) -> DynamicCache:
    """Return a cache that holds ``layers`` and can be appended to; they themselves stay as they are."""
    cache = DynamicCache()
    for index, layer in enumerate(layers):
        cache.update(layer.keys, layer.values, index)
    return cache


@dataclass(frozen=True)
class Shared(Generic[Table]):
    """Rows of a table that the states of a batch have in common: state n reads row ``rows[n]``."""

    table: Table
    rows: Int[Tensor, " state"]

    def select(self, rows: Int[Tensor, " selected"]) -> "Shared[Table]":
        """Return the same table, and the numbers of some states."""
        return Shared(self.table, self.rows[rows])

    def put(self, rows: Int[Tensor, " other"], other: "Shared[Table]") -> "Shared[Table]":
        """Return the numbers with those of ``other`` in place of ``rows``, in one table for both."""
        mine, new = _in_one_table([self, other])
        return Shared(mine.table, mine.rows.index_copy(0, rows, new.rows))

    @classmethod
    def cat(cls, parts: Sequence["Shared[Table]"]) -> "Shared[Table]":
        """Return the numbers of all parts, in one table."""
        moved = _in_one_table(parts)
        return Shared(moved[0].table, torch.cat([part.rows for part in moved]))

    def reserve(self, num_rows: int) -> "Shared[Table]":
        """Return the same table, with room for the numbers of so many states."""
        return Shared(self.table, _reserve(self.rows, num_rows))

    def store(self, start: int, other: "Shared[Table]") -> "Shared[Table]":
        """Write the numbers of ``other`` in place; only another table than this one is copied."""
        mine, new = _in_one_table([self, other])
        return Shared(mine.table, _store(mine.rows, start, new.rows))

    @property
    def row_bytes(self) -> int:
        """Those of a number."""
        return _row_bytes(self.rows)


def _in_one_table(parts: Sequence[Shared[Table]]) -> Sequence[Shared[Table]]:
    """Rows that nobody reads are left behind, so that storing states again and again does not grow the table."""
    if all(part.table is parts[0].table for part in parts):
        return parts
    used = [part.rows.unique(return_inverse=True) for part in parts]
    tables = [part.table.select(kept) for part, (kept, _) in zip(parts, used, strict=True)]
    table, moved, before = type(tables[0]).cat(tables), [], 0
    for kept, numbers in used:
        moved.append(Shared(table, numbers + before))
        before += len(kept)
    return moved


@dataclass(frozen=True)
class Depths:
    """The depth of each row: 1 where it was encoded, one more for every token since.

    ``present`` are those that there are, in order, so that a batch of one depth never waits for its device to say so.
    """

    each: Int[Tensor, " state"]
    present: tuple[int, ...]

    @classmethod
    def at_roots(cls, roots: Int[Tensor, " state"]) -> "Depths":
        """Return depth 1 for each root."""
        return cls(torch.ones_like(roots), (1,))

    @property
    def deepest(self) -> int:
        """The largest depth."""
        return self.present[-1]

    def after_step(self) -> "Depths":
        """Return the depths one token later."""
        return Depths(self.each + 1, tuple(depth + 1 for depth in self.present))

    def select(self, rows: Int[Tensor, " selected"]) -> "Depths":
        """Return those of some rows."""
        return _depths(self.each[rows], self.present)

    def put(self, rows: Int[Tensor, " other"], other: "Depths") -> "Depths":
        """Return the depths with those of ``other`` in place of ``rows``."""
        return _depths(self.each.index_copy(0, rows, other.each), self.present + other.present)

    @classmethod
    def cat(cls, parts: Sequence["Depths"]) -> "Depths":
        """Return those of all parts."""
        present = tuple(depth for part in parts for depth in part.present)
        return _depths(torch.cat([part.each for part in parts]), present)

    def reserve(self, num_rows: int) -> "Depths":
        """Return these depths with room for more; what is not stored yet is of no depth that is present."""
        return Depths(_reserve(self.each, num_rows), self.present)

    def store(self, start: int, other: "Depths") -> "Depths":
        """Write the depths of ``other`` in place; none is thought to have gone, so that the device is not asked."""
        return Depths(_store(self.each, start, other.each), tuple(sorted({*self.present, *other.present})))

    @property
    def row_bytes(self) -> int:
        """Those of a number."""
        return _row_bytes(self.each)

    def groups(self, key: Callable[[int], Hashable]) -> list[tuple[int, Int[Tensor, " group"] | None]]:
        """Return for each value of ``key(depth)`` a depth that has it, and its rows: None where they are all rows."""
        alike: dict[Hashable, list[int]] = {}
        for depth in self.present:
            alike.setdefault(key(depth), []).append(depth)
        if len(alike) == 1:
            return [(self.present[0], None)]
        return [
            (depths[0], torch.isin(self.each, self.each.new_tensor(depths)).nonzero()[:, 0])
            for depths in alike.values()
        ]


def _depths(each: Tensor, candidates: tuple[int, ...]) -> Depths:
    """Which of the candidates there are is asked of the tensor only where there is more than one."""
    distinct = tuple(sorted(set(candidates)))
    if len(distinct) > 1:
        distinct = tuple(each.unique().tolist()) or distinct[:1]
    return Depths(each, distinct)


def _columns(table: StateTable) -> list[tuple[str, Any]]:
    return [(column.name, getattr(table, column.name)) for column in fields(table)]


def _select(value: Any, rows: Tensor) -> Any:
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_select(part, rows) for part in value)
    return value[rows] if isinstance(value, Tensor) else value.select(rows)


def _put(value: Any, rows: Tensor, new: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_put(part, rows, new_part) for part, new_part in zip(value, new, strict=True))
    if not isinstance(value, Tensor):
        return value.put(rows, new)
    value, new = _equally_wide([value, new])
    return value.index_copy(0, rows, new)


def _cat(values: Sequence[Any]) -> Any:
    if values[0] is None:
        return None
    if isinstance(values[0], tuple):
        return tuple(_cat(parts) for parts in zip(*values, strict=True))
    return torch.cat(_equally_wide(values)) if isinstance(values[0], Tensor) else type(values[0]).cat(values)


def _reserve(value: Any, num_rows: int) -> Any:
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_reserve(part, num_rows) for part in value)
    if not isinstance(value, Tensor):
        return value.reserve(num_rows)
    return torch.cat([value, value.new_zeros((num_rows - len(value), *value.shape[1:]))])


def _store(value: Any, start: int, new: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_store(part, start, new_part) for part, new_part in zip(value, new, strict=True))
    if not isinstance(value, Tensor):
        return value.store(start, new)
    value, new = _equally_wide([value, new])
    value[start : start + len(new)] = new
    return value


def _row_bytes(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, tuple):
        return sum(_row_bytes(part) for part in value)
    if not isinstance(value, Tensor):
        return int(value.row_bytes)
    return value.shape[1:].numel() * value.element_size()


def _equally_wide(tensors: Sequence[Tensor]) -> list[Tensor]:
    widest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]

    def widened(tensor: Tensor) -> Tensor:
        missing = [wide - size for wide, size in zip(widest, tensor.shape[1:], strict=True)]
        return functional.pad(tensor, [n for lack in reversed(missing) for n in (0, lack)]) if any(missing) else tensor

    return [widened(tensor) for tensor in tensors]
