"""PPO's arithmetic: losses per token, what is logged of them, and their sum; pure functions on ``[batch step]``.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347. The agent and the trainer on TRL both take it from here, so that
there is one PPO; returns and advantages stand in ``worldmtp.returns``.
"""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

# Losses, per token and unreduced. The all-action surrogate is ours to derive: the sampled one with the sum over actions
# in place of the draw.


def clipped_objective(
    ratio: Float[Tensor, "*batch"], advantages: Float[Tensor, "*batch"], clip_coef: float
) -> Float[Tensor, "*batch"]:
    """Return min(r A, clip(r, 1 - eps, 1 + eps) A), to be maximised. Schulman et al. 2017, eq. 7."""
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantages)


def policy_loss_per_token(
    logprobs: Float[Tensor, "batch step"],
    old_logprobs: Float[Tensor, "batch step"],
    advantages: Float[Tensor, "batch step"],
    clip_coef: float,
) -> Float[Tensor, "batch step"]:
    """Return the clipped surrogate of the actions taken. At ratio one its gradient is -A grad log pi."""
    return -clipped_objective((logprobs - old_logprobs).exp(), advantages, clip_coef)


def all_action_loss_per_token(
    logprobs: Float[Tensor, "batch step live"],
    old_logprobs: Float[Tensor, "batch step live"],
    advantages: Float[Tensor, "batch step live"],
    clip_coef: float,
) -> Float[Tensor, "batch step"]:
    """Return the clipped surrogate averaged over actions: -sum_a pi_old(a) min(r_a A_a, clip(r_a) A_a).

    At ratio one its gradient is -sum_a A_a grad pi(a). Actions left out of the ``live`` axis count as advantage zero;
    padding has ``old_logprobs`` of minus infinity, or advantage zero.
    """
    weights = old_logprobs.exp()
    counts = (weights > 0) & (advantages != 0)  # else the ratio may be infinite, and zero times it is NaN
    ratio = torch.where(counts, logprobs - old_logprobs, 0.0).exp()
    return -(weights * clipped_objective(ratio, advantages, clip_coef)).sum(dim=-1)


def improved_kl_per_token(
    logprobs: Float[Tensor, "batch step improved"], improved_logprobs: Float[Tensor, "batch step improved"]
) -> Float[Tensor, "batch step"]:
    """Return KL(pi' || pi) to an improved policy pi', which takes no gradient.

    Danihelka et al. 2022, "Policy improvement by planning with Gumbel", section 4, the loss of completed Q values.
    Actions of pi' = 0, padding among them, add nothing whatever pi is there. At pi = pi_old its gradient is
    -sum_a (pi'(a) - pi_old(a)) grad log pi(a): that of an all-action term with advantages pi' / pi_old - 1.
    """
    probs = improved_logprobs.exp()
    counts = probs > 0
    difference = torch.where(counts, improved_logprobs, 0.0) - torch.where(counts, logprobs, 0.0)
    return (probs * difference).sum(dim=-1)


def kl_penalty_per_token(
    logprobs: Float[Tensor, "batch step"], ref_logprobs: Float[Tensor, "batch step"]
) -> Float[Tensor, "batch step"]:
    """Return an estimate of KL(pi || pi_ref) from a token of pi: e^d - d - 1 with d = log pi_ref - log pi.

    Unbiased and never negative: the k3 of Schulman 2020, http://joschu.net/blog/kl-approx.html. As a loss its gradient
    is that of the expectation only to first order in d.
    """
    difference = ref_logprobs - logprobs
    return difference.exp() - difference - 1


def masked_mean(
    values: Float[Tensor, "*batch"], mask: Bool[Tensor, "*batch"], count: Shaped[Tensor, ""] | None = None
) -> Float[Tensor, ""]:
    """Return the mean over the true entries of ``mask``; zero, not NaN, where there are none.

    ``count`` is the number of entries of a whole of which this is a part: the parts then add up to its mean.
    """
    return torch.where(mask, values, 0.0).sum() / (mask.sum() if count is None else count).clamp(min=1)


def explained_variance(residual: Float[Tensor, " sample"], target: Float[Tensor, " sample"]) -> float:
    """Return r2 = 1 - Var(residual) / Var(target); zero where the target does not vary."""
    variance = float(target.var(unbiased=False))
    return 1.0 - float(residual.var(unbiased=False)) / variance if variance > 0 else 0.0


def ppo_terms(
    logprobs: Float[Tensor, "batch step"],
    old_logprobs: Float[Tensor, "batch step"],
    ref_logprobs: Float[Tensor, "batch step"],
    advantages: Float[Tensor, "batch step"],
    entropy: Float[Tensor, "batch step"],
    value_loss: Float[Tensor, "batch step"],
    mask: Bool[Tensor, "batch step"],
    count: Shaped[Tensor, ""],
    clip_coef: float,
    action_weights: Float[Tensor, "batch step"] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Return a part's share of the means over ``count`` actions: ``losses/...`` with gradients, then measures without.

    ``action_weights``, pi_old / b of the distribution b that the actions were drawn from, make means over actions those
    of the policy: of its clipped surrogate and of both KLs. So the ratio that is clipped is pi / pi_old whoever acted
    (the decoupled objective of Hilton et al. 2022, "Batch size-invariance for policy optimization",
    https://arxiv.org/abs/2110.00641, with pi_old for their proximal policy). None is 1 everywhere.

    Where ``mask`` is false nothing may be infinite but the advantages. ``losses/ratio_max`` is the part's own.
    """

    def mean(values: Tensor) -> Tensor:
        return masked_mean(values, mask, count)

    def policys(values: Tensor) -> Tensor:
        return mean(values if action_weights is None else action_weights * values)

    terms = {
        "losses/policy": policys(policy_loss_per_token(logprobs, old_logprobs, advantages, clip_coef)),
        "losses/kl_reference": policys(kl_penalty_per_token(logprobs, ref_logprobs)),
        "losses/entropy": mean(entropy),
        "losses/value": mean(value_loss),
    }
    with torch.no_grad():
        log_ratio = logprobs - old_logprobs
        ratio = log_ratio.exp()
        terms["losses/ratio_max"] = torch.where(mask, ratio, 0.0).max()
        terms["losses/approx_kl"] = policys(ratio - 1 - log_ratio)  # the ratio may round to 0
        terms["losses/clip_fraction"] = mean(((ratio - 1).abs() > clip_coef).float())
    return terms


def ppo_loss(
    terms: dict[str, Float[Tensor, ""]], vf_coef: float, kl_coef: float = 0.0, ent_coef: float = 0.0
) -> Float[Tensor, ""]:
    """Return policy + vf_coef value + kl_coef KL - ent_coef entropy, and the terms of imagination where there are any.

    ``losses/counterfactual`` and ``losses/search`` bring their weights. Terms of coefficient zero take no part in it,
    so that they may be infinite.
    """
    loss = terms["losses/policy"] + vf_coef * terms["losses/value"]
    for name in ("losses/counterfactual", "losses/search"):
        if name in terms:
            loss = loss + terms[name]
    if kl_coef:
        loss = loss + kl_coef * terms["losses/kl_reference"]
    if ent_coef:
        loss = loss - ent_coef * terms["losses/entropy"]
    return loss


def value_moves(
    values: Float[Tensor, "*batch"], old_values: Float[Tensor, "*batch"], targets: Float[Tensor, "*batch"], clip: float
) -> Bool[Tensor, "*batch"]:
    """Return where PPO's clipped value loss has a gradient: where it is max((v - R)^2, (clip(v) - R)^2) by its first.

    clip(v) is within ``clip`` of ``old_values``. The second has no gradient where it is the larger, so for any loss of
    a value, a cross-entropy too, clipping means that it counts here alone.
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return (values - targets).abs() >= (clipped - targets).abs()
