"""The rows of a text environment: arrays written in place, and records of some rows as arrays of all.

A row is one text: prompt, response, padding. Nothing here draws, scores or resets, and no call touches more elements
of a row than it changes: a step costs the same whatever the length of the rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float64, Int, Int64, Shaped

Observation = dict[str, np.ndarray]
VectorReset = tuple[Observation, dict[str, Any]]
"""Observations and infos of all rows."""
VectorStep = tuple[
    Observation, Float64[np.ndarray, " env"], Bool[np.ndarray, " env"], Bool[np.ndarray, " env"], dict[str, Any]
]
"""Observations, rewards, which rows were terminated and which truncated, and infos."""
Columns = Mapping[str, Sequence[Any] | np.ndarray]
"""Under each key one entry for each of some rows, in their order."""


class TextRows:
    """Texts under way: ``tokens`` (N, L), ``length`` (N,), ``prompt_length`` (N,) and ``done`` (N,).

    Rows that are done have ended and take no more tokens.
    """

    def __init__(self, num_rows: int, width: int, pad_id: int) -> None:
        self.tokens: Int64[np.ndarray, "row width"] = np.full((num_rows, width), pad_id, dtype=np.int64)
        self.length: Int64[np.ndarray, " row"] = np.zeros(num_rows, dtype=np.int64)
        self.prompt_length: Int64[np.ndarray, " row"] = np.zeros(num_rows, dtype=np.int64)
        self.done: Bool[np.ndarray, " row"] = np.zeros(num_rows, dtype=bool)
        self._pad_id = pad_id

    def begin(
        self,
        rows: Int64[np.ndarray, " begun"],
        prompts: Int64[np.ndarray, "begun max_prompt"],
        prompt_length: Int64[np.ndarray, " begun"],
    ) -> None:
        """Write prompts into these rows, whatever they held."""
        self.tokens[rows] = self._pad_id
        self.tokens[rows, : prompts.shape[1]] = prompts
        self.length[rows] = self.prompt_length[rows] = prompt_length
        self.done[rows] = False

    def append(self, rows: Int64[np.ndarray, " live"], tokens: Int64[np.ndarray, " live"]) -> None:
        """Append a token to each of these rows."""
        self.tokens[rows, self.length[rows]] = tokens
        self.length[rows] += 1

    def remove_last(self, rows: Int64[np.ndarray, " live"]) -> None:
        """Take back what ``append`` did."""
        self.length[rows] -= 1
        self.tokens[rows, self.length[rows]] = self._pad_id

    def write(self, row: int, ids: Sequence[int] | Int64[np.ndarray, " written"]) -> None:
        """Append tokens to one row."""
        start = int(self.length[row])
        self.tokens[row, start : start + len(ids)] = ids
        self.length[row] += len(ids)

    def response(self, row: int, start: int | None = None) -> Int64[np.ndarray, " response"]:
        """Return the tokens behind the prompt of a row, or from ``start`` on; a view."""
        begin = int(self.prompt_length[row]) if start is None else start
        return self.tokens[row, begin : int(self.length[row])]

    def ends(
        self, live: Bool[np.ndarray, " row"], actions: Int64[np.ndarray, " row"], eos_id: int, max_new: int
    ) -> tuple[Bool[np.ndarray, " row"], Bool[np.ndarray, " row"]]:
        """Return which live rows the appended actions terminate and truncate, never both.

        Terminated: the token was EOS. Truncated: it was another, and the last of the budget.
        """
        terminated = live & (actions == eos_id)
        truncated = live & ~terminated & (self.length - self.prompt_length >= max_new)
        return terminated, truncated

    def observation(self, copy: bool = True) -> Observation:
        """Return what agents see: copies, or ``tokens`` as a read-only view that later steps change."""
        tokens = self.tokens.copy() if copy else self.tokens.view()
        tokens.flags.writeable = copy
        return {
            "tokens": tokens,
            "length": self.length[:, None].copy(),
            "prompt_length": self.prompt_length[:, None].copy(),
        }

    def copy(self) -> "TextRows":
        """Return rows of their own arrays."""
        other = TextRows(0, 0, self._pad_id)
        other.tokens, other.length = self.tokens.copy(), self.length.copy()
        other.prompt_length, other.done = self.prompt_length.copy(), self.done.copy()
        return other


def observation_space(width: int, vocab_size: int) -> spaces.Space[Any]:
    """Return the space of one text: its tokens, right-padded, its length, and the length of its prompt."""
    return spaces.Dict(
        tokens=spaces.Box(0, vocab_size - 1, (width,), np.int64),
        length=spaces.Box(0, width, (1,), np.int64),
        prompt_length=spaces.Box(0, width, (1,), np.int64),
    )


def check_actions(
    actions: Int[np.ndarray, "..."], live: Bool[np.ndarray, " row"], vocab_size: int
) -> Int64[np.ndarray, " row"]:
    """Return the actions as int64; those of rows that are not live may be anything.

    Raises:
        ValueError: if there is not one integer a row, or one of a live row is outside the vocabulary.
    """
    actions = np.asarray(actions)
    if actions.shape != live.shape or actions.dtype.kind not in "iu":
        raise ValueError(
            f"actions must be {len(live)} integers, got {actions.dtype} of shape {actions.shape}; "
            "one token id for each row."
        )
    chosen = actions if live.all() else actions[live]
    if chosen.size and (chosen.min() < 0 or chosen.max() >= vocab_size):
        raise ValueError(f"an action is outside the vocabulary 0..{vocab_size - 1}: {chosen}.")
    return actions.astype(np.int64)


def object_column(values: Sequence[Any]) -> Shaped[np.ndarray, " value"]:
    """Return an array of these very objects."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def batch_infos(records: Sequence[dict[str, Any]], rows: Int64[np.ndarray, " record"], num_rows: int) -> dict[str, Any]:
    """Return infos of ``num_rows`` rows of which ``rows`` have a record, by gymnasium's convention.

    Under each key stands an array with one entry a row, and under ``_<key>`` the mask of the rows that have it. Numbers
    and flags become typed arrays (zero where absent), arrays are stacked, nested dicts are batched in the same way, all
    else is an object array.
    """
    infos: dict[str, Any] = {}
    for key in dict.fromkeys(key for record in records for key in record):
        having = [index for index, record in enumerate(records) if key in record]
        key_rows = rows if len(having) == len(records) else rows[having]
        infos |= batch_columns({key: [records[index][key] for index in having]}, key_rows, num_rows)
    return infos


def batch_columns(columns: Columns, rows: Int64[np.ndarray, " record"], num_rows: int) -> dict[str, Any]:
    """Return infos of ``num_rows`` rows of which ``rows`` have an entry in each column; see ``batch_infos``."""
    mask = np.zeros(num_rows, dtype=bool)
    mask[rows] = True
    infos: dict[str, Any] = {}
    for key, values in columns.items():
        infos[key] = _spread(values, rows, num_rows)
        infos[f"_{key}"] = mask.copy()
    return infos


def _spread(values: Sequence[Any] | np.ndarray, rows: Int64[np.ndarray, " record"], num_rows: int) -> Any:
    """Return one column of the infos of all rows, by what these rows have in it."""
    if isinstance(values, np.ndarray) and values.dtype != object:
        spread = np.zeros((num_rows, *values.shape[1:]), dtype=values.dtype)
        spread[rows] = values
        return spread
    kinds = set(map(type, values))
    if kinds == {dict}:
        return batch_infos(values, rows, num_rows)  # type: ignore[arg-type]  # a column of dicts
    if kinds == {np.ndarray} and len({(value.shape, value.dtype) for value in values}) == 1:
        return _spread(np.stack(list(values)), rows, num_rows)
    if kinds <= {int, float} or (len(kinds) == 1 and issubclass(next(iter(kinds)), (bool, np.number))):
        return _spread(np.array(values, dtype=float if kinds == {int, float} else kinds.pop()), rows, num_rows)
    spread = np.empty(num_rows, dtype=object)
    if kinds == {str}:
        spread[rows] = values
        return spread
    for row, value in zip(rows.tolist(), values, strict=True):  # one by one: numpy would unpack sequences
        spread[row] = value
    return spread


def row_info(infos: Mapping[str, Any], row: int) -> dict[str, Any]:
    """Return what batched infos say of one row."""
    info = {}
    for key, value in infos.items():
        if f"_{key}" in infos and infos[f"_{key}"][row]:
            if isinstance(value, Mapping):
                info[key] = row_info(value, row)
            else:
                info[key] = value[row].item() if isinstance(value[row], np.generic) else value[row]
    return info
