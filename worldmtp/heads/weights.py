"""The weights of heads in numbers: how large, of how many directions, how alike from depth to depth, how far moved.

A depth's weights are the entries at its place in the lists that a family has one module a depth in; what all depths
share (an EAGLE layer, a fused input, one set with ``share_depths``) is ``shared``. The trunk's norm and LM head, which
heads may use, are not theirs.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from worldmtp.heads.base import Head
from worldmtp.model.precision import full_precision

SHARED = "shared"

Weights = dict[str, Tensor]


def copied_weights(heads: Head) -> Weights:
    """Return copies of all weights on the CPU, from which ``weight_scalars`` measures drift."""
    return {name: weight.detach().cpu().clone() for name, weight in heads.named_parameters()}


def weights_by_depth(heads: Head) -> dict[str, Weights]:
    """Return the weights of ``depth_2`` .. ``depth_K`` and of ``shared``, by names that are the same for each depth.

    Groups without weights are left out: a family may have none of its own at all.
    """
    return _grouped(heads, {name: weight.detach() for name, weight in heads.named_parameters()})


@torch.no_grad()
def weight_scalars(heads: Head, start: Mapping[str, Tensor]) -> dict[str, float]:
    """Return norm, stable rank, drift from ``start`` and cosine to the depth before, by the tags they are logged under.

    ``norm``: Frobenius norm of all weights of a group. ``stable_rank``: mean over its matrices of |W|_F^2 / |W|_2^2,
    of a zero matrix 0; NaN without a matrix. ``drift``: |W - W_start| / |W_start| over all weights; infinite if they
    started at zero. ``cosine``: over the matrices that both depths have in the same shape; NaN if there is none, or one
    side is zero.

    Raises:
        ValueError: ``start`` is of other heads.
    """
    current = weights_by_depth(heads)
    names = {name: weight.shape for name, weight in heads.named_parameters()}
    if names != {name: weight.shape for name, weight in start.items()}:
        other = sorted(set(names) ^ set(start))
        how = f"by the weights {other[:3]}" if other else "in the shapes of their weights"
        raise ValueError(f"start is of other heads than these, which differ {how}; pass copied_weights of these heads.")
    before = _grouped(heads, start)
    scalars: dict[str, float] = {}
    for group, weights in current.items():
        moved = [
            full_precision(weight) - full_precision(before[group][name].to(weight.device))
            for name, weight in weights.items()
        ]
        first, far = _norm(before[group].values()), _norm(moved)
        scalars[f"heads/{group}/norm"] = _norm(weights.values())
        scalars[f"heads/{group}/stable_rank"] = _mean([stable_rank(weight) for weight in _matrices(weights).values()])
        scalars[f"heads/{group}/drift"] = far / first if first else math.inf if far else 0.0
        depth = int(group.rpartition("_")[2]) if group != SHARED else 0
        if (previous := current.get(f"depth_{depth - 1}")) is not None:
            scalars[f"heads/{group}/cosine"] = _cosine(_matrices(weights), _matrices(previous))
    return scalars


def stable_rank(matrix: Tensor) -> float:
    """Return |W|_F^2 / |W|_2^2, at least 1 and at most the rank; 0 of a zero matrix.

    Rudelson and Vershynin 2007, https://arxiv.org/abs/math/0503442.
    """
    weights = full_precision(matrix)
    # The largest eigenvalue of the smaller of W W^T and W^T W: an unembedding has few columns and many rows.
    gram = weights @ weights.T if weights.shape[0] <= weights.shape[1] else weights.T @ weights
    largest = float(torch.linalg.eigvalsh(gram)[-1])
    return float(gram.diagonal().sum()) / largest if largest > 0 else 0.0


def _grouped(heads: Head, weights: Mapping[str, Tensor]) -> dict[str, Weights]:
    groups: dict[str, Weights] = {group: {} for group in (*(f"depth_{depth}" for depth in heads.depths), SHARED)}
    for name, weight in weights.items():
        group, inside = _place(heads, name)
        groups[group][inside] = weight
    return {group: found for group, found in groups.items() if found}


def _place(heads: Head, name: str) -> tuple[str, str]:
    """Return the group of a weight, and its name there."""
    if len(heads.depths) == 1:
        return f"depth_{heads.depths.start}", name
    parts = name.split(".")
    for at, part in enumerate(parts):
        if part.isdigit():  # the outermost list decides: those inside it are stacks of layers
            owner = ".".join(parts[:at])
            stack = heads.get_submodule(owner)
            if isinstance(stack, nn.ModuleList) and len(stack) == len(heads.depths):
                return f"depth_{heads.depths.start + int(part)}", ".".join([owner, *parts[at + 1 :]])
            break
    return SHARED, name


def _matrices(weights: Weights) -> Weights:
    """Return what is a map of several directions: neither gains and biases nor a single vector."""
    return {name: weight for name, weight in weights.items() if weight.dim() == 2 and min(weight.shape) > 1}


def _norm(weights: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(full_precision(weight).square().sum()) for weight in weights))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _cosine(one: Weights, other: Weights) -> float:
    both = [name for name, weight in one.items() if name in other and other[name].shape == weight.shape]
    product = sum(float((full_precision(one[name]) * full_precision(other[name])).sum()) for name in both)
    length = _norm(one[name] for name in both) * _norm(other[name] for name in both)
    return product / length if length else math.nan
