"""PPO on text: one update from one rollout and its advantage plan.

Reads top to bottom as in Schulman et al. 2017, algorithm 1. The agent owns the trunk and the value head; the heads that
imagine belong to the world model's own optimiser, so that switching them off changes nothing here, to the bit.

Losses are means over the real steps of a minibatch. Left out: value clipping (Andrychowicz et al. 2021, 3.2: no gain)
and early stopping by KL.
"""

import math
from typing import Any

import torch
from transformers import PreTrainedModel

from worldmtp.agents.action_masks import forbid
from worldmtp.agents.advantages import AdvantagePlan
from worldmtp.agents.config import PPOConfig
from worldmtp.agents.forward import PolicyStats, check_eval_mode, gather_states, hidden_states, state_index
from worldmtp.agents.losses import (
    all_action_loss_per_token,
    explained_variance,
    kl_penalty_per_token,
    masked_mean,
    policy_loss_per_token,
)
from worldmtp.agents.trajectory import Rollout
from worldmtp.dynamics import check_temperature
from worldmtp.model import MTPModel
from worldmtp.model.categorical import entropy_per_token
from worldmtp.model.precision import check_trained_weights, full_precision
from worldmtp.model.world_heads import two_hot_cross_entropy


class PPOAgent:
    """The policy (trunk) and its value head, and how they learn; ``temperature`` is that of acting."""

    def __init__(self, model: MTPModel, config: PPOConfig, temperature: float) -> None:
        check_temperature(temperature)
        self.model = model
        self.config = config
        self._temperature = temperature
        self._parameters = [*unique_parameters(model.trunk), *model.world_heads.value.parameters()]
        check_trained_weights("PPOAgent", self._parameters)
        self.optimizer = torch.optim.Adam(self._parameters, lr=config.learning_rate, eps=1e-5)
        self._num_updates = 0

    def update(
        self,
        rollout: Rollout,
        stats: PolicyStats,
        plan: AdvantagePlan,
        generator: torch.Generator,
        remaining: float = 1.0,
    ) -> dict[str, float]:
        """Epochs of minibatches over one rollout; metrics are means over the minibatches.

        A Python user's model must be in evaluation mode: at the first minibatch the ratio is 1 and approx_kl 0.

        ``remaining`` is the share of the run that is left, which an annealed learning rate is proportional to.

        Raises:
            FloatingPointError: a loss is not finite; the model is left as it was before that step.
            ValueError: the model is in training mode.
        """
        check_eval_mode(self.model)
        sums: dict[str, float] = {}
        num_steps, largest_ratio = 0, 0.0
        size = -(-len(rollout) // self.config.num_minibatches)
        for _ in range(self.config.num_epochs):
            order = torch.randperm(len(rollout), generator=generator)
            for rows in order.split(size):
                learning_rate = self._set_learning_rate(remaining)
                terms = self._losses(rollout.select(rows), stats.select(rows), plan.select(rows))
                values = self._step(terms)
                largest_ratio = max(largest_ratio, values.pop("losses/ratio_max"))
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + value
                sums["losses/learning_rate"] = sums.get("losses/learning_rate", 0.0) + learning_rate
                num_steps += 1
                self._num_updates += 1
        metrics = {name: value / num_steps for name, value in sums.items()}
        mask = rollout.step_mask
        metrics["losses/ratio_max"] = largest_ratio
        metrics["losses/explained_variance"] = explained_variance(stats.values[:, :-1][mask], plan.value_targets[mask])
        return metrics

    def _set_learning_rate(self, remaining: float) -> float:
        config = self.config
        warmth = min(1.0, (self._num_updates + 1) / config.warmup_updates) if config.warmup_updates else 1.0
        annealed = remaining if config.anneals_learning_rate else 1.0
        learning_rate = config.learning_rate * warmth * annealed
        self.optimizer.param_groups[0]["lr"] = learning_rate
        return learning_rate

    def _losses(self, rollout: Rollout, stats: PolicyStats, plan: AdvantagePlan) -> dict[str, torch.Tensor]:
        config, mask = self.config, rollout.step_mask
        states = gather_states(
            hidden_states(self.model.trunk, rollout.input_ids, rollout.attention_mask), state_index(rollout)[:, :-1]
        )
        log_policy = forbid(
            full_precision(self.model.logits_of(states)) / self._temperature, rollout.allowed
        ).log_softmax(dim=-1)
        # Padding stands where there is no step. Its probability may round to 0, and the mean's mask comes too late: the
        # slope of the KL's estimate is infinite there, and zero times it is NaN.
        logprobs = torch.where(mask, log_policy.gather(2, rollout.actions[..., None])[..., 0], 0.0)
        taken = policy_loss_per_token(logprobs, rollout.logprobs, plan.advantages, config.clip_coef)
        terms = {"losses/policy": masked_mean(taken, mask)}
        if plan.live_ids.shape[-1] > 0:
            live = log_policy.gather(2, plan.live_ids)
            others = all_action_loss_per_token(live, plan.live_logprobs, plan.live_advantages, config.clip_coef)
            terms["losses/counterfactual"] = masked_mean(others, mask)
        terms["losses/kl_reference"] = masked_mean(kl_penalty_per_token(logprobs, stats.ref_logprobs), mask)
        terms["losses/entropy"] = masked_mean(entropy_per_token(log_policy), mask)
        value_logits = self.model.world_heads.value(states.detach() if config.detach_value else states)
        value_loss = two_hot_cross_entropy(value_logits, plan.value_targets, self.model.world_heads.value_bins)
        terms["losses/value"] = masked_mean(value_loss, mask)
        with torch.no_grad():
            log_ratio = logprobs - rollout.logprobs
            ratio = log_ratio.exp()
            terms["losses/ratio_max"] = torch.where(mask, ratio, 0.0).max()
            terms["losses/approx_kl"] = masked_mean(ratio - 1 - log_ratio, mask)  # the ratio may round to 0
            terms["losses/clip_fraction"] = masked_mean(((ratio - 1).abs() > config.clip_coef).float(), mask)
        return terms

    def _step(self, terms: dict[str, torch.Tensor]) -> dict[str, float]:
        config = self.config
        values = {name: float(term.detach()) for name, term in terms.items()}
        broken = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if broken:
            raise FloatingPointError(f"{', '.join(broken)}; the update was not applied.")
        loss = terms["losses/policy"] + config.vf_coef * terms["losses/value"]
        if "losses/counterfactual" in terms:
            loss = loss + terms["losses/counterfactual"]
        if config.kl_coef:
            loss = loss + config.kl_coef * terms["losses/kl_reference"]
        if config.ent_coef:
            loss = loss - config.ent_coef * terms["losses/entropy"]
        values["losses/total"] = float(loss.detach())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, config.max_grad_norm))
        if not math.isfinite(norm):
            raise FloatingPointError(f"losses/grad_norm is {norm}; the update was not applied.")
        self.optimizer.step()
        values["losses/grad_norm"] = norm
        return values

    def state_dict(self) -> dict[str, Any]:
        """The optimiser; the model is saved by whoever owns it."""
        return {"optimizer": self.optimizer.state_dict(), "num_updates": self._num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._num_updates = int(state["num_updates"])


def unique_parameters(module: PreTrainedModel) -> list[torch.nn.Parameter]:
    """Parameters of a module, tied ones once, in a stable order."""
    return list(dict.fromkeys(module.parameters()))
