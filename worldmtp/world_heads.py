"""Reward, continuation and value, read off a latent of any depth.

The reward and the continuation are those of the transition that *arrived* in the latent's state; the value is that of
the state (see ``worldmtp.dynamics.protocol``). Reward and value are distributions over linear bins, the continuation
is one over {ended, went on}.

Bins are symmetric about zero, whatever the range: a head that has learnt nothing is uniform, and so predicts exactly 0,
neither reward nor value (as in DreamerV3, Hafner et al. 2023, https://arxiv.org/abs/2301.04104). Bins of [0, 1] alone
would start it at .5.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldmtp.config import MTPConfig
from worldmtp.distributions import make_bins
from worldmtp.heads.zero import ZeroLinear
from worldmtp.precision import full_precision

NORM_EPS = 1e-6


@dataclass(frozen=True)
class WorldPrediction:
    """Logits; ``worldmtp.distributions.binned_mean`` and ``continuation_probs`` read them."""

    value_logits: Float[Tensor, "*batch value_bins"]
    reward_logits: Float[Tensor, "*batch reward_bins"]
    continuation_logits: Float[Tensor, "*batch 2"]

    @property
    def continuation_probs(self) -> Float[Tensor, "*batch"]:
        """Probability that the episode went on."""
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
        """Predictions of latents."""
        return WorldPrediction(
            value_logits=self.value(latent),
            reward_logits=self.reward(latent),
            continuation_logits=self.continuation(latent),
        )

    @property
    def value_bins(self) -> Float[Tensor, " bins"]:
        """Bins of the value, never in less than single precision."""
        return self._bins(self.value_range)

    @property
    def reward_bins(self) -> Float[Tensor, " bins"]:
        """Bins of the reward, never in less than single precision."""
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
