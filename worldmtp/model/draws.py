"""Draws from many distributions at once, by a generator of this device or of the host."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def draw(log_probs: Float[Tensor, "place vocab"], generator: torch.Generator | None) -> Int[Tensor, " place"]:
    """One token a place from log-probabilities; the most likely where there is no generator.

    A generator of another device than the model's (the host's, so that its state is portable) sends one uniform number
    a place across, which the distribution function turns into a token.
    """
    if generator is None:
        return log_probs.argmax(dim=-1)
    if generator.device.type == log_probs.device.type:
        return torch.multinomial(log_probs.exp(), 1, generator=generator)[:, 0]
    uniform = torch.rand(len(log_probs), generator=generator, dtype=torch.float64, device=generator.device)
    return inverse_distribution(log_probs.exp(), uniform.to(log_probs.device))


def inverse_distribution(
    probs: Float[Tensor, "place vocab"], uniform: Float[Tensor, " place"]
) -> Int[Tensor, " place"]:
    """The first token whose cumulated probability exceeds ``uniform``, in [0, 1); improbable tokens never."""
    cumulated = probs.double().cumsum(dim=-1)
    at = torch.searchsorted(cumulated, uniform[:, None] * cumulated[:, -1:], right=True)[:, 0]
    return at.clamp_max(probs.shape[-1] - 1)
