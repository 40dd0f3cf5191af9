"""Group baselines: what an episode's return is compared with, none of them depending on that episode's own actions.

With k episodes a prompt, the leave-one-out mean of the group (RLOO) knows the prompt but averages k - 1 returns; the
mean of the batch is quiet but knows nothing. The shrunk baseline takes a share kappa of the way from the second to the
first, and learns the share by regression on batches that have passed.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.agents.regression import RunningSlope


def leave_one_out_mean(returns: Float[Tensor, " episode"], group: Int[Tensor, " episode"]) -> Float[Tensor, " episode"]:
    """Mean return of the others of one's group; of all others where one is alone.

    Ahmadian et al. 2024 (RLOO), eq. 7, https://arxiv.org/abs/2402.14740.
    """
    _, index = group.unique(return_inverse=True)
    counts = torch.zeros(int(index.max()) + 1, dtype=returns.dtype, device=returns.device)
    counts = counts.index_add(0, index, torch.ones_like(returns))
    totals = torch.zeros_like(counts).index_add(0, index, returns)
    others = (totals[index] - returns) / (counts[index] - 1).clamp(min=1)
    return torch.where(counts[index] > 1, others, _others_mean(returns))


def shrunk_baseline(
    returns: Float[Tensor, " episode"], group: Int[Tensor, " episode"], kappa: float
) -> Float[Tensor, " episode"]:
    """B = m + kappa (loo - m): m the mean of all other episodes, loo the mean of the group's others.

    kappa = 1 is RLOO, kappa = 0 the batch mean. Leaving oneself out of m too keeps b independent of one's own actions,
    so the policy gradient stays unbiased.
    """
    batch_mean = _others_mean(returns)
    return batch_mean + kappa * (leave_one_out_mean(returns, group) - batch_mean)


def same_return_fraction(returns: Float[Tensor, " episode"], group: Int[Tensor, " episode"]) -> float:
    """Return the share of groups whose episodes all have one return: they teach a group baseline nothing."""
    same = [bool((returns[group == index] == returns[group == index][0]).all()) for index in group.unique()]
    return sum(same) / len(same)


def update_kappa(slope: RunningSlope, returns: Float[Tensor, " episode"], group: Int[Tensor, " episode"]) -> None:
    """Take a batch into the running regression of G - m on loo - m."""
    batch_mean = _others_mean(returns)
    slope.update(leave_one_out_mean(returns, group) - batch_mean, returns - batch_mean)


def _others_mean(returns: Tensor) -> Tensor:
    if len(returns) < 2:
        return torch.zeros_like(returns)
    return (returns.sum() - returns) / (len(returns) - 1)
