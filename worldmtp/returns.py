"""Returns and advantages: pure functions on ``[batch time]`` tensors.

One convention for all of them (Gymnasium's): ``rewards[:, t]`` and ``discounts[:, t]`` belong to ``actions[:, t]``
taken in ``s_t``, and ``next_values[:, t]`` is the value of ``s_{t+1}``, the state that action led to. A discount is
gamma * (1 - terminated): zero ends the value. Where an episode is truncated the discount stays gamma and the value of
the state it stopped in is bootstrapped; since nothing may flow back over that border from whatever follows in the
tensor, ``lambda_`` is zero at that step (it may be a tensor).

Left out: off-policy corrections (V-trace, Retrace). PPO's data are one policy version old at most.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def lambda_returns(
    rewards: Float[Tensor, "batch time"],
    discounts: Float[Tensor, "batch time"],
    next_values: Float[Tensor, "batch time"],
    lambda_: float | Float[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """Return lambda returns G_t = r_t + d_t [(1 - lambda) v_{t+1} + lambda G_{t+1}], with G_T = v_T.

    Sutton & Barto 2018, eq. 12.18. lambda = 0 is the one-step target; lambda = 1 the Monte Carlo return with a
    bootstrap. A tensor of lambdas cuts the recursion where it is zero, which is what a truncated episode needs.
    """
    mixing = torch.as_tensor(lambda_, dtype=rewards.dtype, device=rewards.device).expand_as(rewards)
    following = next_values[:, -1]
    returns = torch.empty_like(rewards)
    for t in reversed(range(rewards.shape[1])):
        blended = (1 - mixing[:, t]) * next_values[:, t] + mixing[:, t] * following
        following = rewards[:, t] + discounts[:, t] * blended
        returns[:, t] = following
    return returns


def generalized_advantages(
    rewards: Float[Tensor, "batch time"],
    discounts: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time_plus_1"],
    lambda_: float | Float[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """Return advantages A_t = sum_l (d lambda)^l delta_{t+l}, delta_t = r_t + d_t v_{t+1} - v_t.

    Schulman et al. 2016, eq. 16, https://arxiv.org/abs/1506.02438; written as the lambda return less the value, which
    is the same sum. ``values`` has one entry more than ``rewards``, the last the bootstrap.

    Raises:
        ValueError: ``values`` does not have T + 1 entries.
    """
    if values.shape[1] != rewards.shape[1] + 1:
        raise ValueError(
            f"values has {values.shape[1]} entries for {rewards.shape[1]} rewards; it needs one more than rewards, "
            "the value of the state after the last action."
        )
    return lambda_returns(rewards, discounts, values[:, 1:], lambda_) - values[:, :-1]


def value_expansion(
    rewards: Float[Tensor, "root horizon"],
    discounts: Float[Tensor, "root horizon"],
    values: Float[Tensor, "root horizon_plus_1"],
) -> Float[Tensor, "root horizon_plus_1"]:
    """Return value expansions T_h = sum_{i<h} (prod_{j<i} d_j) r_i + (prod_{j<h} d_j) v_h, for h = 0 .. horizon.

    Feinberg et al. 2018 (MVE), eq. 3.1, https://arxiv.org/abs/1803.00101. T_0 is the critic itself. ``discounts`` are
    gamma times the imagined continuation, so what is imagined after an imagined end counts nothing.
    """
    ones = torch.ones_like(values[:, :1])
    carried = torch.cat([ones, discounts.cumprod(dim=1)], dim=1)
    collected = torch.cat([torch.zeros_like(ones), (carried[:, :-1] * rewards).cumsum(dim=1)], dim=1)
    return collected + carried * values


def episode_discounts(
    step_mask: Bool[Tensor, "batch step"],
    terminated: Bool[Tensor, "batch step"],
    truncated: Bool[Tensor, "batch step"],
    gamma: float,
    bootstrap_truncated: bool,
) -> Float[Tensor, "batch step"]:
    """Return gamma where value goes on after the step, zero where it ends and where there is no step."""
    ends = terminated if bootstrap_truncated else terminated | truncated
    return torch.where(ends | ~step_mask, 0.0, gamma)


def episode_lambdas(
    step_mask: Bool[Tensor, "batch step"], ended: Bool[Tensor, "batch step"], lambda_: float
) -> Float[Tensor, "batch step"]:
    """Return lambda inside an episode, zero at its last step: nothing flows back over the border."""
    return torch.where(ended | ~step_mask, 0.0, lambda_)


def scale_of(mean_square: Float[Tensor, ""], least: float = 1e-6) -> float:
    """Return what advantages are divided by: their root mean square, or ``least``; one where all of them vanish."""
    scale = float(mean_square.sqrt())
    return max(scale, least) if scale > 1e-6 else 1.0
