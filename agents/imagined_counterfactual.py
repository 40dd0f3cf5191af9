"""``imagination.use=counterfactual``: the all-action term, its critic ladder, its gate.

On a fresh batch, before anything trains on it: the rungs' advantages are computed, slope and r2 are measured against
the real returns with the slope of *past* batches, and the plan is made with the rung and the slope that past batches
chose. So the choice does not look at the batch it is used on, and the estimator stays unbiased.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worldmtp.agents.advantages import AdvantagePlan, advantage_moments, advantage_scale, monte_carlo_targets, spread
from worldmtp.agents.baselines import shrunk_baseline, update_kappa
from worldmtp.agents.config import ImaginationConfig, PPOConfig
from worldmtp.agents.counterfactual import LiveTokens, centred_advantages, episode_correction, live_tokens
from worldmtp.agents.critic import Rung, serving_rung
from worldmtp.agents.features import NUM_SURPRISALS, imagined_features, num_readings, surprisal_features
from worldmtp.agents.forward import PolicyStats, episode_returns
from worldmtp.agents.imagined_returns import Acting, acted_states
from worldmtp.agents.regression import RunningSlope, correlation, explained_share
from worldmtp.agents.trajectory import Rollout
from worldmtp.dynamics import LatentState, WorldModel, check_action_conditional, check_horizon

_CRITIC_BATCH = 4096


class CounterfactualAdvantages:
    """An ``AdvantageEstimator`` that asks what the untaken tokens were worth; its critics compute in ``dtype``.

    Raises:
        TypeError: the world model, where a rung reads it, is blind to actions.
        ValueError: the horizon is beyond it; or gamma is below 1, or truncated episodes go on in value.
    """

    def __init__(
        self,
        world_model: WorldModel[Any],
        acting: Acting,
        hidden_size: int,
        config: ImaginationConfig,
        ppo: PPOConfig,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        ppo.check_whole_episodes("imagination.use='counterfactual'")
        if config.max_rung > 0:
            check_action_conditional(world_model)
            check_horizon(world_model, config.horizon)
        self._world_model = world_model
        self._acting = acting
        self._range = acting.return_range
        self._config = config
        self._ppo = ppo
        self._generator = generator
        self._kappa = RunningSlope(decay=config.slope_decay, initial=0.5)
        widths = [NUM_SURPRISALS, num_readings(config.horizon), hidden_size]
        self._dtype = dtype
        self._rungs = [
            Rung(
                sum(widths[: rung + 1]),
                config.critic_hidden_size,
                config.critic_learning_rate,
                config.critic_replay_iterations,
                config.slope_decay,
                generator,
                device,
                dtype,
            )
            for rung in range(config.max_rung + 1)
        ]

    def estimate(
        self, rollout: Rollout, stats: PolicyStats, states: LatentState | None = None
    ) -> tuple[AdvantagePlan, dict[str, float]]:
        """See ``AdvantageEstimator.estimate``."""
        config = self._config
        returns = episode_returns(rollout)
        kappa = self._kappa.slope
        residual = returns - shrunk_baseline(returns, rollout.group, kappa)
        update_kappa(self._kappa, returns, rollout.group)
        live = live_tokens(stats.log_policy, rollout.step_mask, config.max_live, config.min_probability)
        metrics = {
            "imagination/kappa": kappa,
            "imagination/num_live_mean": float(live.mask.sum() / rollout.step_mask.sum().clamp(min=1)),
        }
        features = self._features(rollout, stats, states, live, metrics)
        serving = serving_rung(self._rungs, config.min_batches)
        used_advantages, used_slope = torch.zeros_like(live.logprobs), 0.0
        for index, rung in enumerate(self._rungs):
            advantages = self._advantages(rung, features[:, : rung.critic.inner.in_features], live)
            correction = episode_correction(advantages, live, rollout.actions)
            slope = rung.slope.slope
            r2 = explained_share(residual - slope * correction, residual)
            metrics[f"imagination/rung_{index}/r2"] = r2
            metrics[f"imagination/rung_{index}/slope"] = slope
            metrics[f"imagination/rung_{index}/corr"] = correlation(correction, residual)
            if index == serving:
                used_advantages, used_slope = advantages, slope
                metrics |= {"imagination/r2": r2, "imagination/slope": slope, "imagination/rung": float(index)}
            rung.measure(r2, correction, residual)
            self._remember(rung, features, live, rollout, returns)
        metrics["imagination/gate_open"] = float(serving is not None)
        correction = episode_correction(used_advantages, live, rollout.actions)
        metrics |= advantage_moments(spread(residual - used_slope * correction, rollout), rollout)
        scale = advantage_scale(spread(residual, rollout), rollout) if self._ppo.scale_advantages else 1.0
        plan = AdvantagePlan(
            advantages=spread((residual - used_slope * correction) / scale, rollout),
            value_targets=monte_carlo_targets(rollout, stats, self._ppo),
            live_ids=live.ids,
            live_logprobs=live.logprobs,
            live_advantages=used_slope * used_advantages / scale,
        )
        return plan, metrics

    def _features(
        self,
        rollout: Rollout,
        stats: PolicyStats,
        states: LatentState | None,
        live: LiveTokens,
        metrics: dict[str, float],
    ) -> Float[Tensor, "candidate features"]:
        """Features of every live candidate, rung by rung along the last axis."""
        features = surprisal_features(stats.log_policy, live, rollout)[live.mask].to(self._dtype)
        if self._config.max_rung == 0:
            return features
        config, acting = self._config, self._acting
        if states is None:
            states = acted_states(self._world_model, rollout)
        imagined = imagined_features(
            self._world_model, acting, rollout, states, live, config.horizon, config.chunk_states
        )
        metrics["imagination/imagined_tokens"] = float(imagined.num_steps)
        if acting.turns is not None:
            metrics["imagination/turn_border_fraction"] = imagined.border_fraction
        columns = [features, imagined.readings, *([imagined.latents] if self._config.max_rung > 1 else [])]
        return torch.cat([column.to(self._dtype) for column in columns], dim=-1)

    @torch.no_grad()
    def _advantages(self, rung: Rung, features: Tensor, live: LiveTokens) -> Float[Tensor, "batch time live"]:
        low, high = self._range
        q_values = torch.zeros_like(live.logprobs)
        q_values[live.mask] = (low + (high - low) * torch.sigmoid(rung.critic(features))).to(q_values.dtype)
        return centred_advantages(q_values, live)

    def _remember(
        self, rung: Rung, features: Tensor, live: LiveTokens, rollout: Rollout, returns: Float[Tensor, " batch"]
    ) -> None:
        """Keep the candidates that were taken; a taken token outside the live set has no features and is left out."""
        low, high = self._range
        taken = live.taken(rollout.actions)[live.mask]
        scaled = ((returns - low) / (high - low)).clamp(0.0, 1.0)
        targets = scaled[:, None, None].expand_as(live.logprobs)[live.mask]
        rung.remember(features[taken, : rung.critic.inner.in_features], targets[taken])

    def learn(self) -> dict[str, float]:
        """Train every rung on its replay, the last batch included; one with nothing to train on has no loss."""
        metrics = {}
        for index, rung in enumerate(self._rungs):
            loss = rung.train(self._config.critic_updates, _CRITIC_BATCH, self._generator)
            if loss is not None:
                metrics[f"imagination/rung_{index}/loss"] = loss
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """See ``AdvantageEstimator.state_dict``."""
        return {"kappa": self._kappa.state_dict(), "rungs": [rung.state_dict() for rung in self._rungs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``AdvantageEstimator.load_state_dict``."""
        self._kappa.load_state_dict(state["kappa"])
        for rung, saved in zip(self._rungs, state["rungs"], strict=True):
            rung.load_state_dict(saved)
