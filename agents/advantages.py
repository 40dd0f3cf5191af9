"""From rollouts to advantage plans: the estimator's contract, plain PPO's, and what every estimator is made of.

An estimator sees a fresh rollout once (``estimate``, before anything trains on it) and may learn from it afterwards
(``learn``). Plain PPO and both uses of imagination are estimators; the update does not know which it serves.

Group baselines compare an episode's return with one that does not depend on its own actions. With k episodes a prompt,
the leave-one-out mean of the group (RLOO) knows the prompt but averages k - 1 returns; the mean of the batch has little
variance but knows nothing. The shrunk baseline takes a share kappa of the way from the second to the first, and learns
the share by regression on past batches, so that using it on the next one adds no bias.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.agents.config import PPOConfig
from worldmtp.agents.ppo import AdvantagePlan, PolicyStats
from worldmtp.agents.rollout import Rollout, episode_returns
from worldmtp.dynamics import LatentState
from worldmtp.objective.policy_losses import masked_mean
from worldmtp.returns import (
    episode_discounts,
    episode_lambdas,
    generalized_advantages,
    lambda_returns,
    scale_of,
)
from worldmtp.statistics import noise_ceiling_estimate


@runtime_checkable
class AdvantageEstimator(Protocol):
    """Turns rollouts into advantage plans."""

    num_likely: int
    """How many of the likeliest tokens of each state ``PolicyStats`` must hold; 0 is none."""

    def estimate(
        self, rollout: Rollout, stats: PolicyStats, states: LatentState | None = None
    ) -> tuple[AdvantagePlan, dict[str, float]]:
        """Return the plan, and metrics measured before anything trained on this rollout.

        ``states``, the rollout's in the world model (``acted_states``), save its pass where they are at hand.
        """
        ...

    def learn(self) -> dict[str, float]:
        """Train on the rollout last estimated; return metrics."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        ...


class PlainAdvantages:
    """PPO without imagination: GAE on the value head, or the shrunk group baseline."""

    num_likely = 0

    def __init__(self, config: PPOConfig) -> None:
        self._config = config
        self._kappa = RunningSlope(initial=0.5)

    def estimate(
        self, rollout: Rollout, stats: PolicyStats, states: LatentState | None = None
    ) -> tuple[AdvantagePlan, dict[str, float]]:
        """Return the plan and its metrics, as ``AdvantageEstimator.estimate`` describes."""
        metrics: dict[str, float] = {}
        if self._config.advantage == "gae":
            advantages = gae_of(rollout, stats.values, self._config.gae_lambda, self._config)
        else:
            returns = episode_returns(rollout)
            metrics["imagination/kappa"] = self._kappa.slope
            baseline = shrunk_baseline(returns, rollout.group, self._kappa.slope)
            update_kappa(self._kappa, returns, rollout.group)
            advantages = per_step(returns - baseline, rollout)
        metrics |= advantage_moments(advantages, rollout)
        scale = 1.0
        if self._config.scale_advantages:
            scale = advantage_scale(advantages, rollout, self._config.min_advantage_scale)
        return plain_plan(advantages / scale, monte_carlo_returns(rollout, self._config, stats.values)), metrics

    def learn(self) -> dict[str, float]:
        """Return no metrics: kappa has learnt from the batch already."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"kappa": self._kappa.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._kappa.load_state_dict(state["kappa"])


def gae_of(
    rollout: Rollout, values: Float[Tensor, "batch step_plus_1"], lambda_: float, config: PPOConfig
) -> Float[Tensor, "batch step"]:
    """Return GAE with this project's treatment of ends; zero where there is no step."""
    advantages = generalized_advantages(
        rollout.rewards, discounts_of(rollout, config), values, lambdas_of(rollout, lambda_)
    )
    return torch.where(rollout.step_mask, advantages, 0.0)


def monte_carlo_returns(
    rollout: Rollout, config: PPOConfig, values: Float[Tensor, "batch step_plus_1"] | None = None
) -> Float[Tensor, "batch step"]:
    """Return what really followed each step (lambda = 1), and ``values`` only after a truncation that goes on.

    Without ``values`` nothing is bootstrapped.
    """
    after = torch.zeros_like(rollout.rewards) if values is None else values[:, 1:]
    returns = lambda_returns(rollout.rewards, discounts_of(rollout, config), after, lambdas_of(rollout, 1.0))
    return torch.where(rollout.step_mask, returns, 0.0)


def per_step(episode_values: Float[Tensor, " batch"], rollout: Rollout) -> Float[Tensor, "batch step"]:
    """Return each episode's number at every one of its steps; zero where there is no step."""
    return torch.where(rollout.step_mask, episode_values[:, None], 0.0)


def advantage_moments(advantages: Float[Tensor, "batch step"], rollout: Rollout) -> dict[str, float]:
    """Return mean and standard deviation over the steps, before scaling."""
    taken = advantages[rollout.step_mask]
    return {
        "losses/advantage_mean": float(taken.mean()),
        "losses/advantage_std": float(taken.std(unbiased=False)),
    }


def advantage_scale(advantages: Float[Tensor, "batch step"], rollout: Rollout, least: float = 1e-6) -> float:
    """Return the root mean square over the steps, or ``least``; one where all advantages vanish."""
    return scale_of(masked_mean(advantages**2, rollout.step_mask), least)


def plain_plan(advantages: Float[Tensor, "batch step"], value_targets: Float[Tensor, "batch step"]) -> AdvantagePlan:
    """Return a plan without an all-action term."""
    nothing = advantages.new_zeros((*advantages.shape, 0))
    return AdvantagePlan(advantages, value_targets, nothing.long(), nothing, nothing)


def discounts_of(rollout: Rollout, config: PPOConfig) -> Float[Tensor, "batch step"]:
    """Return gamma where value goes on after the step, zero where it ends and where there is no step."""
    return episode_discounts(
        rollout.step_mask, rollout.terminated, rollout.truncated, config.gamma, config.bootstrap_truncated
    )


def lambdas_of(rollout: Rollout, lambda_: float) -> Float[Tensor, "batch step"]:
    """Return lambda inside an episode, zero at its last step: nothing flows back over the border."""
    return episode_lambdas(rollout.step_mask, rollout.terminated | rollout.truncated, lambda_)


@dataclass
class RunningSlope:
    """Least-squares slope through the origin, sum x y / sum x^2, forgetting old batches by ``decay`` a batch.

    Until it has seen data the slope is ``initial``. The slope is clipped to [``low``, ``high``].
    """

    decay: float = 0.9
    initial: float = 0.0
    low: float = 0.0
    high: float = 1.0
    cross: float = 0.0
    square: float = 0.0

    @property
    def slope(self) -> float:
        """The clipped slope of all batches so far."""
        if self.square <= 0:
            return self.initial
        return min(max(self.cross / self.square, self.low), self.high)

    def update(self, x: Float[Tensor, " sample"], y: Float[Tensor, " sample"]) -> None:
        """Add a batch; its samples have equal weight."""
        self.cross = self.decay * self.cross + float((x * y).double().mean())
        self.square = self.decay * self.square + float((x * x).double().mean())

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint needs."""
        return {"cross": self.cross, "square": self.square}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what ``state_dict`` returned."""
        self.cross, self.square = float(state["cross"]), float(state["square"])


@dataclass
class RunningMean:
    """Bias-corrected exponential moving average (Kingma & Ba 2015, algorithm 1)."""

    decay: float = 0.9
    total: float = 0.0
    weight: float = 0.0

    @property
    def mean(self) -> float:
        """The average; zero before any data."""
        return self.total / self.weight if self.weight > 0 else 0.0

    def update(self, value: float) -> None:
        """Add a value."""
        self.total = self.decay * self.total + (1 - self.decay) * value
        self.weight = self.decay * self.weight + (1 - self.decay)

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint needs."""
        return {"total": self.total, "weight": self.weight}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what ``state_dict`` returned."""
        self.total, self.weight = float(state["total"]), float(state["weight"])


def correlation(x: Float[Tensor, " sample"], y: Float[Tensor, " sample"]) -> float:
    """Return Pearson's r; zero where either does not vary."""
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    scale = float(torch.linalg.vector_norm(x) * torch.linalg.vector_norm(y))
    return float((x * y).sum()) / scale if scale > 0 else 0.0


def leave_one_out_mean(returns: Float[Tensor, " episode"], group: Int[Tensor, " episode"]) -> Float[Tensor, " episode"]:
    """Return the mean return of the others in one's group; of all others where one is alone.

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
    """Return b = m + kappa (loo - m): m is the mean of all other episodes, loo that of the group's others.

    kappa = 1 is RLOO, kappa = 0 the batch mean. Leaving oneself out of m too keeps b independent of one's own actions,
    so the policy gradient stays unbiased.
    """
    batch_mean = _others_mean(returns)
    return batch_mean + kappa * (leave_one_out_mean(returns, group) - batch_mean)


def same_return_fraction(returns: Float[Tensor, " episode"], group: Int[Tensor, " episode"]) -> float:
    """Return the share of groups whose episodes all have one return: they teach a group baseline nothing."""
    same = [bool((returns[group == index] == returns[group == index][0]).all()) for index in group.unique()]
    return sum(same) / len(same)


def return_ceiling(returns: Float[Tensor, " episode"], group: Int[Tensor, " episode"]) -> dict[str, float]:
    """Return the best correlation possible with these returns by tag, each one draw of its group's distribution.

    Empty where groups are of one episode or of unequal sizes, and where nothing varies.
    """
    sizes = group.bincount(minlength=int(group.max()) + 1)
    size = int(sizes.max())
    if size < 2 or bool(((sizes > 0) & (sizes != size)).any()) or len(returns) < 2 * size:
        return {}
    draws = returns[group.argsort(stable=True)].double().cpu().numpy().reshape(-1, size)
    found = noise_ceiling_estimate(draws)
    return {} if found is None else {"imagination/return_ceiling": found}


def update_kappa(slope: RunningSlope, returns: Float[Tensor, " episode"], group: Int[Tensor, " episode"]) -> None:
    """Add a batch to the running regression of G - m on loo - m."""
    batch_mean = _others_mean(returns)
    slope.update(leave_one_out_mean(returns, group) - batch_mean, returns - batch_mean)


def _others_mean(returns: Tensor) -> Tensor:
    if len(returns) < 2:
        return torch.zeros_like(returns)
    return (returns.sum() - returns) / (len(returns) - 1)
