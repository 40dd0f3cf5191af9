"""Categorical distributions over fixed bins, for rewards and values: two-hot targets, their cross-entropy, the mean.

Bins are linear. With exponentially spaced (symlog) bins whose mean is taken in symlog space, a Bernoulli reward of
probability one half reads as 0.41 (DreamerV3's own code takes it in raw space for that reason); text rewards are
mostly Bernoulli.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional


def make_bins(
    lowest: float,
    highest: float,
    num_bins: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, " bins"]:
    """Equally spaced bins, both ends included, exactly symmetric about their middle.

    Raises:
        ValueError: fewer than two bins, or an empty range.
    """
    if num_bins < 2:
        raise ValueError(f"num_bins={num_bins} must be at least 2, one for each end of the range.")
    if not lowest < highest:
        raise ValueError(f"the range ({lowest}, {highest}) is empty; the first must be below the second.")
    unit = torch.arange(1 - num_bins, num_bins, 2, dtype=torch.float64, device=device) / (num_bins - 1)
    return ((lowest + highest) / 2 + (highest - lowest) / 2 * unit).to(dtype)


def two_hot(targets: Float[Tensor, "*batch"], bins: Float[Tensor, " bins"]) -> Float[Tensor, "*batch bins"]:
    """Probabilities on the two bins around each target, whose mean is the target.

    Bellemare et al. 2017, https://arxiv.org/abs/1707.06887, project distributions so; here it is a single number.
    Targets outside the bins go to the nearest end, and their mean with them: ``clipped_fraction`` says how many do,
    and who trains on targets reports it.
    """
    inside = targets.to(bins.dtype).clamp(bins[0], bins[-1])
    upper = torch.searchsorted(bins, inside.contiguous()).clamp(1, len(bins) - 1)
    lower = upper - 1
    weight = ((inside - bins[lower]) / (bins[upper] - bins[lower]))[..., None]
    hot = torch.zeros((*targets.shape, len(bins)), dtype=bins.dtype, device=bins.device)
    return hot.scatter(-1, lower[..., None], 1 - weight).scatter(-1, upper[..., None], weight)


def binned_mean(logits: Float[Tensor, "*batch bins"], bins: Float[Tensor, " bins"]) -> Float[Tensor, "*batch"]:
    """Mean of the distribution.

    Summed from both ends inwards, so that the mean of a symmetric distribution over symmetric bins is zero exactly.
    """
    weighted = _full_precision(logits).softmax(dim=-1) * bins
    return ((weighted + weighted.flip(-1)) / 2).sum(dim=-1)


def two_hot_cross_entropy(
    logits: Float[Tensor, "*batch bins"], targets: Float[Tensor, "*batch"], bins: Float[Tensor, " bins"]
) -> Float[Tensor, "*batch"]:
    """Cross-entropy of each prediction with the two-hot of its target; targets get no gradient."""
    return -(two_hot(targets.detach(), bins) * functional.log_softmax(_full_precision(logits), dim=-1)).sum(dim=-1)


def clipped_fraction(
    targets: Float[Tensor, "*batch"], bins: Float[Tensor, " bins"], mask: Bool[Tensor, "*batch"] | None = None
) -> Float[Tensor, ""]:
    """Share of the targets that lie outside the bins; zero where the mask leaves none."""
    outside = (targets < bins[0]) | (targets > bins[-1])
    counted = torch.ones_like(outside) if mask is None else mask
    return (outside & counted).sum().to(bins.dtype) / counted.sum().clamp_min(1)


def _full_precision(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
