"""``imagination.use=counterfactual``: an all-action term whose wrong critic cannot bias the policy gradient.

A critic Q^(s, a) scores the *live* tokens, the few the policy might have written instead. Centred under the old policy,
A^(s, a) = Q^(s, a) - sum_a' pi_old(a'|s) Q^(s, a'), and with S = sum_l A^(s_l, a_l) over the episode, the gradient is

    sum_t [ sum_a eta A^(s_t, a) grad pi(a|s_t)  +  (G - b - eta S) grad log pi(a_t|s_t) ].

Given s_t, every later A^ has mean zero, every earlier one is a constant, and the one at t is given back by the sum over
actions: the expectation is the policy gradient for *any* Q^, eta and baseline b that do not look at this episode's
actions from t on (the trajectory-wise doubly robust form; Jiang & Li 2016 for the idea). A perfect critic leaves no
residual in a deterministic text world; a useless one gets slope eta = 0 and the plain estimator is back.

**The tail.** All tokens outside the live set are one action more, of probability

    pi(tail|s) = 1 - sum_live pi(a|s),    grad pi(tail|s) = sum of grad pi(a|s) over its tokens,

with a Q^, an A^ and a term in the sum over actions like any live token; whichever of its tokens is taken gets
A^(s, tail). This is as unbiased as the rest. Let c(a) be the action that the token a belongs to, itself or the tail,
and take Q^(s, c(a)) for a critic of tokens, one that does not tell some of them apart. Its mean over tokens is its mean
over actions, sum_a pi_old(a|s) Q^(s, c(a)) = sum_c pi_old(c|s) Q^(s, c), so the centring is the one above; and its
all-action term over tokens, sum_a A^(s, c(a)) grad pi(a|s), is the one that is computed, sum_c A^(s, c) grad pi(c|s).
Hence what was said of any critic holds for this one, as what is live depends on the state alone. No token more is
imagined: of the world model the tail reads zeros, and the critic knows it by a feature of its own.

With ``imagination.tail=false`` the tokens outside get the live mean of Q^, so their A^ is zero *and* the centring stays
exact: no bias either, but an episode that fails by such a token is judged as if that token were any other. Either way
the likeliest tokens and what is left are all that has to be kept of the policy.

On a fresh batch, before anything trains on it, the rungs' advantages are computed, slope and r2 are measured against
the real returns with the slope of *past* batches, and the plan is made with the rung and the slope that past batches
chose. So the choice does not look at the batch it is used on, and the estimator stays unbiased.
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.agents.advantages import (
    RunningSlope,
    advantage_moments,
    advantage_scale,
    correlation,
    monte_carlo_returns,
    per_step,
    shrunk_baseline,
    update_kappa,
)
from worldmtp.agents.config import ImaginationConfig, PPOConfig
from worldmtp.agents.imagination.completions import COMPLETIONS_RUNG, NUM_COLUMNS, ScoredCompletions
from worldmtp.agents.imagination.critic import (
    LiveTokens,
    Rung,
    imagined_features,
    live_tokens,
    num_readings,
    num_surprisals,
    serving_rung,
    surprisal_features,
)
from worldmtp.agents.imagination.imagined_returns import Acting, acted_states
from worldmtp.agents.ppo import AdvantagePlan, PolicyStats
from worldmtp.agents.rollout import Rollout, episode_returns
from worldmtp.dynamics import LatentState, WorldModel, check_action_conditional, check_horizon
from worldmtp.objective.policy_losses import explained_variance

_CRITIC_BATCH = 4096


def centred_advantages(
    q_values: Float[Tensor, "batch step live"], live: LiveTokens
) -> Float[Tensor, "batch step live"]:
    """Return A^ of the live tokens, centred under the old policy; zero where masked."""
    probs = torch.where(live.mask, live.logprobs.exp(), 0.0)
    safe_q = torch.where(live.mask, q_values, 0.0)
    total = probs.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(probs.dtype).tiny)
    state_value = (probs * safe_q).sum(dim=-1, keepdim=True) / total
    return torch.where(live.mask, safe_q - state_value, 0.0)


def episode_correction(
    advantages: Float[Tensor, "batch step live"], live: LiveTokens, actions: Int[Tensor, "batch step"]
) -> Float[Tensor, " batch"]:
    """Return S = sum_l A^(s_l, a_l), the critic's advantage of the actions taken, over the episode."""
    return torch.where(live.taken(actions), advantages, 0.0).sum(dim=(1, 2))


def tail_shares(
    live: LiveTokens,
    actions: Int[Tensor, "batch step"],
    returns: Float[Tensor, " batch"],
    return_range: tuple[float, float],
) -> dict[str, float]:
    """Return the share of episodes, and of those paid less than the full range, that took a token of the tail."""
    low, high = return_range
    took = (live.taken(actions) & live.is_tail).flatten(start_dim=1).any(dim=1)
    failed = returns < high - 1e-6 * (high - low)  # less than rounding of a sum of rewards is no failure
    shares = {"imagination/tail_taken_fraction": float(took.float().mean())}
    if bool(failed.any()):
        shares["imagination/tail_failure_fraction"] = float(took[failed].float().mean())
    return shares


def control_plan(plan: AdvantagePlan, rollout: Rollout) -> AdvantagePlan:
    """Return the plan without imagination: eta S goes back to the actions taken, and there is no all-action term.

    The baseline and the scale are the plan's own, so the two differ by the critic alone.
    """
    live = LiveTokens(plan.live_ids, plan.live_logprobs, torch.isfinite(plan.live_logprobs))
    correction = episode_correction(plan.live_advantages, live, rollout.actions)
    return replace(
        plan,
        advantages=plan.advantages + per_step(correction, rollout),
        live_advantages=torch.zeros_like(plan.live_advantages),
    )


def _at(places: Bool[Tensor, " candidate"], rows: Float[Tensor, "own width"]) -> Float[Tensor, "candidate width"]:
    """Return ``rows`` at the true ``places``, and zeros at the others."""
    return rows.new_zeros((len(places), rows.shape[-1])).index_put((places,), rows)


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
        completions: ScoredCompletions | None = None,
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
        widths = [num_surprisals(config.tail), num_readings(config.horizon), hidden_size]
        self._dtype = dtype
        self.num_likely = config.max_live
        self._completions = completions
        self._rungs = [
            Rung(sum(widths[: rung + 1]), config, generator, device, dtype) for rung in range(config.max_rung + 1)
        ]
        # Each rung's number, and what it reads of the features.
        self._numbers = list(range(config.max_rung + 1))
        self._columns: list[slice | Tensor] = [slice(rung.num_features) for rung in self._rungs]
        if completions is not None:
            total = self._rungs[-1].num_features
            columns = torch.tensor([*range(widths[0]), *range(total, total + NUM_COLUMNS)], device=device)
            self._rungs.append(Rung(len(columns), config, generator, device, dtype))
            self._numbers.append(COMPLETIONS_RUNG)
            self._columns.append(columns)

    def estimate(
        self, rollout: Rollout, stats: PolicyStats, states: LatentState | None = None
    ) -> tuple[AdvantagePlan, dict[str, float]]:
        """Return the plan and its metrics, as ``AdvantageEstimator.estimate`` describes.

        Raises:
            ValueError: the likely tokens of the states were not read.
        """
        config = self._config
        returns = episode_returns(rollout)
        kappa = self._kappa.slope
        residual = returns - shrunk_baseline(returns, rollout.group, kappa)
        update_kappa(self._kappa, returns, rollout.group)
        if stats.likely is None:
            raise ValueError(
                "stats hold no alternatives to the actions taken; read the rollout with "
                "policy_stats(..., num_likely=estimator.num_likely)."
            )
        live = live_tokens(stats.likely, rollout.step_mask, config.min_probability, config.tail)
        num_live = live.without_tail().mask.sum() / rollout.step_mask.sum().clamp(min=1)
        metrics = {"imagination/kappa": kappa, "imagination/num_live_mean": float(num_live)}
        if config.tail:
            metrics |= tail_shares(live, rollout.actions, returns, self._range)
        features, measured = self._features(rollout, stats.likely.entropy, states, live)
        metrics |= measured
        serving = serving_rung(self._rungs, config.min_batches)
        used_advantages, used_slope = torch.zeros_like(live.logprobs), 0.0
        for index, (number, rung, columns) in enumerate(zip(self._numbers, self._rungs, self._columns, strict=True)):
            advantages = self._advantages(rung, features[:, columns], live)
            correction = episode_correction(advantages, live, rollout.actions)
            slope = rung.slope.slope
            r2 = explained_variance((residual - slope * correction).double(), residual.double())
            metrics[f"imagination/rung_{number}/r2"] = r2
            metrics[f"imagination/rung_{number}/slope"] = slope
            metrics[f"imagination/rung_{number}/corr"] = correlation(correction, residual)
            if index == serving:
                used_advantages, used_slope = advantages, slope
                metrics |= {"imagination/r2": r2, "imagination/slope": slope, "imagination/rung": float(number)}
            rung.measure(r2, correction, residual)
            self._remember(rung, features[:, columns], live, rollout, returns)
        metrics["imagination/gate_open"] = float(serving is not None)
        correction = episode_correction(used_advantages, live, rollout.actions)
        metrics |= advantage_moments(per_step(residual - used_slope * correction, rollout), rollout)
        scale = 1.0
        if self._ppo.scale_advantages:
            scale = advantage_scale(per_step(residual, rollout), rollout, self._ppo.min_advantage_scale)
        plan = AdvantagePlan(
            advantages=per_step((residual - used_slope * correction) / scale, rollout),
            value_targets=monte_carlo_returns(rollout, self._ppo, stats.values),
            live_ids=live.ids,
            live_logprobs=live.logprobs.masked_fill(~live.mask, float("-inf")),
            live_advantages=used_slope * used_advantages / scale,
        )
        return plan, metrics

    def _features(
        self,
        rollout: Rollout,
        entropy: Float[Tensor, "batch step"],
        states: LatentState | None,
        live: LiveTokens,
    ) -> tuple[Float[Tensor, "candidate features"], dict[str, float]]:
        """Return the features of every live candidate, rung by rung along the last axis, and what they cost."""
        features = surprisal_features(entropy, live, rollout)[live.mask].to(self._dtype)
        if states is None and (self._config.max_rung > 0 or self._completions is not None):
            states = acted_states(self._world_model, rollout)
        metrics: dict[str, float] = {}
        if self._config.max_rung > 0:
            assert states is not None
            imagined, metrics = self._imagined(rollout, states, live)
            features = torch.cat([features, *imagined], dim=-1)
        if self._completions is not None:
            assert states is not None
            columns, costs = self._completions.features(rollout, states, live)
            features = torch.cat([features, columns.to(self._dtype)], dim=-1)
            tokens = metrics.get("imagination/imagined_tokens", 0.0) + costs.pop("imagination/imagined_tokens")
            metrics |= costs | {"imagination/imagined_tokens": tokens}
        return features, metrics

    def _imagined(
        self, rollout: Rollout, states: LatentState, live: LiveTokens
    ) -> tuple[list[Float[Tensor, "candidate _"]], dict[str, float]]:
        """Return the columns of readings and latents, of the tail zeros, and what they cost."""
        config, acting = self._config, self._acting
        imagined = imagined_features(
            self._world_model, acting, rollout, states, live.without_tail(), config.horizon, config.chunk_states
        )
        own = ~live.is_tail[live.mask]
        metrics = {"imagination/imagined_tokens": float(imagined.num_steps)}
        if acting.turns is not None:
            metrics["imagination/turn_border_fraction"] = imagined.border_fraction
        columns = [imagined.readings, *([imagined.latents] if config.max_rung > 1 else [])]
        return [_at(own, column.to(self._dtype)) for column in columns], metrics

    @torch.no_grad()
    def _advantages(self, rung: Rung, features: Tensor, live: LiveTokens) -> Float[Tensor, "batch step live"]:
        low, high = self._range
        q_values = torch.zeros_like(live.logprobs)
        q_values[live.mask] = (low + (high - low) * torch.sigmoid(rung.critic(features))).to(q_values.dtype)
        return centred_advantages(q_values, live)

    def _remember(
        self, rung: Rung, features: Tensor, live: LiveTokens, rollout: Rollout, returns: Float[Tensor, " batch"]
    ) -> None:
        """Keep the candidates that were taken, the tail among them; without it, what was outside is left out."""
        low, high = self._range
        taken = live.taken(rollout.actions)[live.mask]
        scaled = ((returns - low) / (high - low)).clamp(0.0, 1.0)
        targets = scaled[:, None, None].expand_as(live.logprobs)[live.mask]
        rung.remember(features[taken], targets[taken])

    def learn(self) -> dict[str, float]:
        """Train every rung on its replay, the last batch included; a rung with nothing to train on has no loss."""
        metrics = {}
        for number, rung in zip(self._numbers, self._rungs, strict=True):
            loss = rung.train(self._config.critic_updates, _CRITIC_BATCH, self._generator)
            if loss is not None:
                metrics[f"imagination/rung_{number}/loss"] = loss
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"kappa": self._kappa.state_dict(), "rungs": [rung.state_dict() for rung in self._rungs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: the critics that it holds read other features than these.
        """
        self._check_features([int(saved["critic"]["inner.weight"].shape[1]) for saved in state["rungs"]])
        self._kappa.load_state_dict(state["kappa"])
        for rung, saved in zip(self._rungs, state["rungs"], strict=True):
            rung.load_state_dict(saved)

    def _check_features(self, saved: list[int]) -> None:
        own = [rung.num_features for rung in self._rungs]
        if saved == own:
            return
        tail = self._config.tail
        others = [number - num_surprisals(tail) + num_surprisals(not tail) for number in own]
        cure = (
            f"they were trained with imagination.tail={str(not tail).lower()}, so set that to go on with them"
            if saved == others
            else "go on with the imagination.horizon, max_rung, tail and completions of the run that trained them"
        )
        raise ValueError(f"the saved critics read {saved} features, a number a rung, and these {own}; {cure}.")
