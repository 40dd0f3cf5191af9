"""What is wrong with a checkpoint, gathered: one error names every weight, not the first of a thousand."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor


class LayoutError(ValueError):
    """A checkpoint is not what its layout says, or a model is not what a layout can express."""


def raise_all(what: str, problems: Sequence[str]) -> None:
    """Raise if there is a problem.

    Raises:
        LayoutError: with all of them, one a line.
    """
    if problems:
        raise LayoutError("\n  ".join([f"{what}, {len(problems)} problem(s):", *problems]))


def whole_number(key: str, value: Any) -> int:
    """Return what a config says as a number: 3, 3.0 or "3".

    Raises:
        LayoutError: it is no whole number; the message names the key.
    """
    is_whole = (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and value.is_integer()
    )
    if not is_whole and not (isinstance(value, str) and value.strip().lstrip("-").isdecimal()):
        raise LayoutError(f"the config has {key}={value!r}, expected a whole number; correct it.")
    return int(value)


def not_finite(tensors: Mapping[str, Shaped[Tensor, "..."]]) -> list[str]:
    """Return weights with NaN or infinity: uninitialised memory, or a sentinel that nobody overwrote."""
    found = []
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            num_nan, num_inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
            found.append(f"not finite: {name} has {num_nan} NaN and {num_inf} infinite values of {tensor.numel()}")
    return found


def differences(expected: Mapping[str, tuple[int, ...]], got: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return missing and unexpected names, and shapes that differ."""
    found = [f"missing: {name} {expected[name]}" for name in sorted(set(expected) - set(got))]
    found += [f"unexpected: {name} {got[name]}" for name in sorted(set(got) - set(expected))]
    found += [
        f"shape: {name} is {got[name]}, expected {expected[name]}"
        for name in sorted(set(expected) & set(got))
        if got[name] != expected[name]
    ]
    return found


def shapes(tensors: Mapping[str, Shaped[Tensor, "..."]]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
