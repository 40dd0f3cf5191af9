"""Dicts of single rows to one dict of arrays, by gymnasium's convention.

Under each key stands an array with one entry a row, and under ``_<key>`` the mask of the rows that have it. Numbers and
flags become typed arrays (zero where absent), arrays are stacked, nested dicts are batched in the same way, all else is
an object array.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

Columns = Mapping[str, Sequence[Any] | np.ndarray]
"""Under each key one entry for each of some rows, in their order."""


def batch_infos(records: Sequence[dict[str, Any]], rows: Int64[np.ndarray, " record"], num_rows: int) -> dict[str, Any]:
    """Infos of ``num_rows`` rows of which ``rows`` have a record."""
    infos: dict[str, Any] = {}
    for key in dict.fromkeys(key for record in records for key in record):
        having = [index for index, record in enumerate(records) if key in record]
        key_rows = rows if len(having) == len(records) else rows[having]
        infos |= batch_columns({key: [records[index][key] for index in having]}, key_rows, num_rows)
    return infos


def batch_columns(columns: Columns, rows: Int64[np.ndarray, " record"], num_rows: int) -> dict[str, Any]:
    """Infos of ``num_rows`` rows of which ``rows`` have an entry in each column."""
    mask = np.zeros(num_rows, dtype=bool)
    mask[rows] = True
    infos: dict[str, Any] = {}
    for key, values in columns.items():
        kinds = {type(value) for value in values}
        if kinds == {dict}:
            infos[key] = batch_infos(values, rows, num_rows)  # type: ignore[arg-type]  # a column of dicts
        elif kinds == {np.ndarray} and len({(value.shape, value.dtype) for value in values}) == 1:
            infos[key] = np.zeros((num_rows, *values[0].shape), dtype=values[0].dtype)
            infos[key][rows] = np.stack(list(values))
        elif kinds <= {int, float} or (len(kinds) == 1 and issubclass(next(iter(kinds)), (bool, np.number))):
            infos[key] = np.zeros(num_rows, dtype=float if kinds == {int, float} else kinds.pop())
            infos[key][rows] = values
        else:
            infos[key] = np.full(num_rows, None)
            for row, value in zip(rows.tolist(), values, strict=True):  # one by one: numpy would unpack sequences
                infos[key][row] = value
        infos[f"_{key}"] = mask.copy()
    return infos
