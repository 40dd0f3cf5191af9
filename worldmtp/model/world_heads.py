"""Reward, continuation and value, read off a latent of any depth, as distributions over fixed bins.

The reward and the continuation are those of the transition that *arrived* in the latent's state; the value is that of
the state (see ``worldmtp.dynamics.protocol``). The continuation is a distribution over {ended, went on}.

Bins are linear. With exponentially spaced (symlog) bins whose mean is taken in symlog space, a Bernoulli reward of
probability one half reads as 0.41 (DreamerV3's own code takes it in raw space for that reason); text rewards are
mostly Bernoulli. Bins are symmetric about zero, whatever the range: a head that has learnt nothing is uniform, and so
predicts exactly 0 (as in DreamerV3, Hafner et al. 2023, https://arxiv.org/abs/2301.04104). Bins of [0, 1] alone would
start it at .5.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from worldmtp.heads.base import ZeroLinear
from worldmtp.model.config import MTPConfig
from worldmtp.model.precision import full_precision

NORM_EPS = 1e-6


def make_bins(
    lowest: float,
    highest: float,
    num_bins: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, " bins"]:
    """Return equally spaced bins, both ends included, exactly symmetric about their middle.

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
    """Return probabilities on the two bins around each target, whose mean is the target.

    Bellemare et al. 2017, https://arxiv.org/abs/1707.06887, project distributions so; here it is a single number.
    Targets outside the bins go to the nearest end, and their mean with them.
    """
    inside = targets.to(bins.dtype).clamp(bins[0], bins[-1])
    upper = torch.searchsorted(bins, inside.contiguous()).clamp(1, len(bins) - 1)
    lower = upper - 1
    weight = ((inside - bins[lower]) / (bins[upper] - bins[lower]))[..., None]
    hot = torch.zeros((*targets.shape, len(bins)), dtype=bins.dtype, device=bins.device)
    return hot.scatter(-1, lower[..., None], 1 - weight).scatter(-1, upper[..., None], weight)


def binned_mean(logits: Float[Tensor, "*batch bins"], bins: Float[Tensor, " bins"]) -> Float[Tensor, "*batch"]:
    """Return the mean of the distribution.

    Summed from both ends inwards, so that the mean of a symmetric distribution over symmetric bins is zero exactly.
    """
    weighted = full_precision(logits).softmax(dim=-1) * bins
    return ((weighted + weighted.flip(-1)) / 2).sum(dim=-1)


def two_hot_cross_entropy(
    logits: Float[Tensor, "*batch bins"], targets: Float[Tensor, "*batch"], bins: Float[Tensor, " bins"]
) -> Float[Tensor, "*batch"]:
    """Return the cross-entropy of each prediction with the two-hot of its target; targets get no gradient."""
    return -(two_hot(targets.detach(), bins) * functional.log_softmax(full_precision(logits), dim=-1)).sum(dim=-1)


@dataclass(frozen=True)
class WorldPrediction:
    """Logits of value, reward and continuation; ``binned_mean`` and ``continuation_probs`` read them."""

    value_logits: Float[Tensor, "*batch value_bins"]
    reward_logits: Float[Tensor, "*batch reward_bins"]
    continuation_logits: Float[Tensor, "*batch 2"]

    @property
    def continuation_probs(self) -> Float[Tensor, "*batch"]:
        """Return the probability that the episode went on."""
        return full_precision(self.continuation_logits).softmax(dim=-1)[..., 1]


class WorldHeads(nn.Module):
    """Three small MLPs. They start uniform, so the initial reward and value are zero."""

    def __init__(self, config: MTPConfig) -> None:
        super().__init__()
        assert config.hidden_size is not None
        self.resolution = config.num_value_bins
        self.value_range = config.value_range
        self.reward_range = config.reward_range
        self.value = _mlp(config.hidden_size, num_symmetric_bins(self.value_range, self.resolution))
        self.reward = _mlp(config.hidden_size, num_symmetric_bins(self.reward_range, self.resolution))
        self.continuation = _mlp(config.hidden_size, 2)

    def forward(self, latent: Float[Tensor, "*batch hidden"]) -> WorldPrediction:
        """Return predictions of latents."""
        return WorldPrediction(
            value_logits=self.value(latent),
            reward_logits=self.reward(latent),
            continuation_logits=self.continuation(latent),
        )

    @property
    def value_bins(self) -> Float[Tensor, " bins"]:
        """Return the bins of the value, never in less than single precision."""
        return self._bins(self.value_range)

    @property
    def reward_bins(self) -> Float[Tensor, " bins"]:
        """Return the bins of the reward, never in less than single precision."""
        return self._bins(self.reward_range)

    def _bins(self, bin_range: tuple[float, float]) -> Tensor:
        weight = next(self.parameters())
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        largest = max(abs(bin_range[0]), abs(bin_range[1]))
        num_bins = num_symmetric_bins(bin_range, self.resolution)
        return make_bins(-largest, largest, num_bins, dtype=dtype, device=weight.device)


def num_symmetric_bins(bin_range: tuple[float, float], resolution: int) -> int:
    """Return how many bins from -m to m, the range's largest magnitude, are as dense as ``resolution`` in the range.

    (0, 1) in 21 bins, .05 apart, are 41 from -1 to 1; a range that is symmetric keeps its own.
    """
    low, high = bin_range
    if low == -high:
        return resolution
    return 2 * round(max(abs(low), abs(high)) * (resolution - 1) / (high - low)) + 1


def _mlp(hidden_size: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.RMSNorm(hidden_size, eps=NORM_EPS),
        nn.Linear(hidden_size, hidden_size),
        nn.SiLU(),
        ZeroLinear(hidden_size, num_outputs),
    )
