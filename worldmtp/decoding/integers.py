"""Integers as callers pass them: Python's, numpy's, or tensors of one integer."""

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_integer(name: str, value: Any, expected: str = "an integer") -> int:
    """Return the value as Python's integer.

    Raises:
        TypeError: it is something else; ``name`` is what the message calls it. A bool counts as something else.
    """
    is_bool = isinstance(value, (bool, np.bool_)) or (isinstance(value, Tensor) and value.dtype == torch.bool)
    try:
        number = None if is_bool else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name}={value!r} has type {type(value).__name__}, expected {expected}.")
    return number
