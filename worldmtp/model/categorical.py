"""Categorical distributions over a vocabulary: draws from many at once, and their entropy."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def draw(log_probs: Float[Tensor, "place vocab"], generator: torch.Generator | None) -> Int[Tensor, " place"]:
    """Return one token a place from log-probabilities; the most likely where there is no generator.

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
    """Return the first token whose cumulated probability exceeds ``uniform``, in [0, 1); improbable tokens never."""
    cumulated = probs.double().cumsum(dim=-1)
    at = torch.searchsorted(cumulated, uniform[:, None] * cumulated[:, -1:], right=True)[:, 0]
    return at.clamp_max(probs.shape[-1] - 1)


def entropy_per_token(log_probs: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """Return the entropy in nats, -sum_v p_v log p_v with 0 log 0 = 0, of log-probabilities.

    A token that is excluded (minus infinity), or whose probability rounds to zero, adds nothing to it nor to its
    gradient. ``torch.special.entr(log_probs.exp())`` is the same number, but its slope at p = 0 is infinite: times the
    slope of exp, which is zero there, it is NaN.
    """
    finite = log_probs.masked_fill(log_probs == float("-inf"), 0.0)  # counts as 1 log 1, which is 0 as well
    return -(finite.exp() * finite).sum(dim=-1)
