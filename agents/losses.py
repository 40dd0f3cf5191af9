"""PPO's losses, per token and unreduced: pure functions.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347. The all-action surrogate is ours to derive: the sampled one with
the sum over actions in place of the draw.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def clipped_objective(
    ratio: Float[Tensor, "*batch"], advantages: Float[Tensor, "*batch"], clip_coef: float
) -> Float[Tensor, "*batch"]:
    """min(r A, clip(r, 1 - eps, 1 + eps) A), to be maximised. Schulman et al. 2017, eq. 7."""
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantages)


def policy_loss_per_token(
    logprobs: Float[Tensor, "batch time"],
    old_logprobs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"],
    clip_coef: float,
) -> Float[Tensor, "batch time"]:
    """The clipped surrogate of the actions taken. At ratio one its gradient is -A grad log pi."""
    return -clipped_objective((logprobs - old_logprobs).exp(), advantages, clip_coef)


def all_action_loss_per_token(
    logprobs: Float[Tensor, "batch time live"],
    old_logprobs: Float[Tensor, "batch time live"],
    advantages: Float[Tensor, "batch time live"],
    clip_coef: float,
) -> Float[Tensor, "batch time"]:
    """The clipped surrogate averaged over actions: -sum_a pi_old(a) min(r_a A_a, clip(r_a) A_a).

    At ratio one its gradient is -sum_a A_a grad pi(a). Actions left out of the ``live`` axis count as advantage zero;
    padding has ``old_logprobs`` of minus infinity, or advantage zero.
    """
    weights = old_logprobs.exp()
    counts = (weights > 0) & (advantages != 0)  # else the ratio may be infinite, and zero times it is NaN
    ratio = torch.where(counts, logprobs - old_logprobs, 0.0).exp()
    return -(weights * clipped_objective(ratio, advantages, clip_coef)).sum(dim=-1)


def kl_penalty_per_token(
    logprobs: Float[Tensor, "batch time"], ref_logprobs: Float[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Estimate of KL(pi || pi_ref) from a token of pi: e^d - d - 1 with d = log pi_ref - log pi.

    Unbiased and never negative: the k3 of Schulman 2020, http://joschu.net/blog/kl-approx.html. As a loss its gradient
    is that of the expectation only to first order in d.
    """
    difference = ref_logprobs - logprobs
    return difference.exp() - difference - 1


def masked_mean(values: Float[Tensor, "*batch"], mask: Bool[Tensor, "*batch"]) -> Float[Tensor, ""]:
    """Mean over the true entries of ``mask``; zero, not NaN, where there are none."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def explained_variance(predictions: Float[Tensor, " sample"], targets: Float[Tensor, " sample"]) -> float:
    """1 - Var(targets - predictions) / Var(targets); zero where the targets do not vary."""
    variance = float(targets.var(unbiased=False))
    return 1.0 - float((targets - predictions).var(unbiased=False)) / variance if variance > 0 else 0.0
