"""One gradient step of a policy or of heads: clipped, never of a broken number, and its numbers added up."""

import math
from collections.abc import Mapping, Sequence

import torch

from worldmtp.tracking.late_numbers import LateNumbers, zero_unless_finite


def clipped_step(optimizer: torch.optim.Optimizer, max_grad_norm: float, tag: str, late: LateNumbers) -> None:
    """Take a step with the gradient clipped by its norm, which is added to ``late`` under ``tag``.

    A gradient that is not finite is never applied. Where the host knows of it in time, as on a CPU, no weight changes;
    else the step has a gradient of zero, by which a momentum moves on, and the error comes with a later number.

    Raises:
        FloatingPointError: a number of ``late`` that has arrived is not finite; no weight was changed.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(weights, max_grad_norm)
    late.add({tag: norm})
    if late.is_coming:
        zero_unless_finite(weights, norm)
    optimizer.step()


def check_finite(numbers: dict[str, float], _: int = 0) -> None:
    """Raise if a number of a step is not finite.

    Raises:
        FloatingPointError: one is.
    """
    broken = {name: f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value)}
    if len(broken) > 1:
        broken.pop("losses/total", None)  # which any broken term breaks
    if broken:
        raise FloatingPointError(f"{', '.join(broken.values())}; the update was not applied.")


def summed(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the sum of each number over the records that have it."""
    sums: dict[str, float] = {}
    for record in records:
        for name, value in record.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums
