"""Dicts of single rows to one dict of arrays, by gymnasium's convention.

Under each key stands an array with one entry a row, and under ``_<key>`` the mask of the rows that have it. Numbers and
flags become typed arrays (zero where absent), arrays are stacked, nested dicts are batched in the same way, all else is
an object array.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64


def batch_infos(records: Sequence[dict[str, Any]], rows: Int64[np.ndarray, " record"], num_rows: int) -> dict[str, Any]:
    """Infos of ``num_rows`` rows of which ``rows`` have a record."""
    infos: dict[str, Any] = {}
    keys = dict.fromkeys(key for record in records for key in record)
    for key in keys:
        having = [index for index, record in enumerate(records) if key in record]
        values = [records[index][key] for index in having]
        key_rows = rows if len(having) == len(records) else rows[having]
        if isinstance(values[0], dict):
            infos[key] = batch_infos(values, key_rows, num_rows)
        elif isinstance(values[0], np.ndarray):
            infos[key] = np.zeros((num_rows, *values[0].shape), dtype=values[0].dtype)
            infos[key][key_rows] = np.stack(values)
        else:
            dtype = type(values[0]) if isinstance(values[0], (bool, int, float)) else object
            column = np.full(num_rows, None) if dtype is object else np.zeros(num_rows, dtype=dtype)
            column[key_rows] = values
            infos[key] = column
        infos[f"_{key}"] = row_mask(key_rows, num_rows)
    return infos


def row_mask(rows: Int64[np.ndarray, " selected"], num_rows: int) -> np.ndarray:
    """Which rows these are."""
    mask = np.zeros(num_rows, dtype=bool)
    mask[rows] = True
    return mask
