"""What PPO is told about a rollout: the advantage plan, and the plain ways to make one.

An estimator sees a fresh rollout once (``estimate``, before anything trains on it) and may learn from it afterwards
(``learn``). Plain PPO and both uses of imagination are estimators; the update does not know which it serves.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.agents.baselines import shrunk_baseline, update_kappa
from worldmtp.agents.config import PPOConfig
from worldmtp.agents.forward import PolicyStats, discounts_of, episode_returns, lambdas_of
from worldmtp.agents.losses import masked_mean
from worldmtp.agents.regression import RunningSlope
from worldmtp.agents.trajectory import Rollout, TensorBatch
from worldmtp.dynamics import LatentState
from worldmtp.returns import generalized_advantages, lambda_returns


@dataclass(frozen=True)
class AdvantagePlan(TensorBatch):
    """Advantages of the actions taken and, where there is an all-action term, of the tokens that were not.

    ``live`` is empty in plain PPO. ``live_logprobs`` are log pi_old; a masked token has advantage zero.
    """

    advantages: Float[Tensor, "batch time"]
    value_targets: Float[Tensor, "batch time"]
    live_ids: Int[Tensor, "batch time live"]
    live_logprobs: Float[Tensor, "batch time live"]
    live_advantages: Float[Tensor, "batch time live"]


@runtime_checkable
class AdvantageEstimator(Protocol):
    """Turns rollouts into advantage plans."""

    def estimate(
        self, rollout: Rollout, stats: PolicyStats, states: LatentState | None = None
    ) -> tuple[AdvantagePlan, dict[str, float]]:
        """The plan, and metrics measured before anything trained on this rollout.

        ``states``, the rollout's in the world model (``acted_states``), save its pass where they are at hand.
        """
        ...

    def learn(self) -> dict[str, float]:
        """Train on the rollout last estimated; metrics."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore."""
        ...


class PlainAdvantages:
    """PPO without imagination: GAE on the value head, or the shrunk group baseline."""

    def __init__(self, config: PPOConfig) -> None:
        self._config = config
        self._kappa = RunningSlope(initial=0.5)

    def estimate(
        self, rollout: Rollout, stats: PolicyStats, states: LatentState | None = None
    ) -> tuple[AdvantagePlan, dict[str, float]]:
        """See ``AdvantageEstimator.estimate``."""
        metrics: dict[str, float] = {}
        if self._config.advantage == "gae":
            advantages = gae_of(rollout, stats.values, self._config.gae_lambda, self._config)
        else:
            returns = episode_returns(rollout)
            metrics["imagination/kappa"] = self._kappa.slope
            baseline = shrunk_baseline(returns, rollout.group, self._kappa.slope)
            update_kappa(self._kappa, returns, rollout.group)
            advantages = spread(returns - baseline, rollout)
        metrics |= advantage_moments(advantages, rollout)
        scale = advantage_scale(advantages, rollout) if self._config.scale_advantages else 1.0
        return plain_plan(advantages / scale, monte_carlo_targets(rollout, stats, self._config)), metrics

    def learn(self) -> dict[str, float]:
        """Nothing to learn."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """See ``AdvantageEstimator.state_dict``."""
        return {"kappa": self._kappa.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``AdvantageEstimator.load_state_dict``."""
        self._kappa.load_state_dict(state["kappa"])


def gae_of(
    rollout: Rollout, values: Float[Tensor, "batch time_plus_1"], lambda_: float, config: PPOConfig
) -> Float[Tensor, "batch time"]:
    """GAE with this project's treatment of ends; zero where there is no step."""
    advantages = generalized_advantages(
        rollout.rewards, discounts_of(rollout, config), values, lambdas_of(rollout, lambda_)
    )
    return torch.where(rollout.step_mask, advantages, 0.0)


def monte_carlo_targets(rollout: Rollout, stats: PolicyStats, config: PPOConfig) -> Float[Tensor, "batch time"]:
    """Value targets with lambda = 1: what really followed, bootstrapped only at a truncation that goes on."""
    targets = lambda_returns(
        rollout.rewards, discounts_of(rollout, config), stats.values[:, 1:], lambdas_of(rollout, 1.0)
    )
    return torch.where(rollout.step_mask, targets, 0.0)


def spread(episode_values: Float[Tensor, " batch"], rollout: Rollout) -> Float[Tensor, "batch time"]:
    """One number an episode, at each of its steps."""
    return torch.where(rollout.step_mask, episode_values[:, None], 0.0)


def advantage_moments(advantages: Float[Tensor, "batch time"], rollout: Rollout) -> dict[str, float]:
    """Mean and standard deviation over the steps, before scaling."""
    taken = advantages[rollout.step_mask]
    return {
        "losses/advantage_mean": float(taken.mean()),
        "losses/advantage_std": float(taken.std(unbiased=False)),
    }


def advantage_scale(advantages: Float[Tensor, "batch time"], rollout: Rollout) -> float:
    """Root mean square over the steps; one where all advantages vanish, so that nothing is blown up."""
    scale = float(masked_mean(advantages**2, rollout.step_mask).sqrt())
    return scale if scale > 1e-6 else 1.0


def plain_plan(advantages: Float[Tensor, "batch time"], value_targets: Float[Tensor, "batch time"]) -> AdvantagePlan:
    """A plan without an all-action term."""
    nothing = advantages.new_zeros((*advantages.shape, 0))
    return AdvantagePlan(advantages, value_targets, nothing.long(), nothing, nothing)
