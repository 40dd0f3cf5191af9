"""PPO on text: what an update is given, its forward pass, and the update, in this order.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347, algorithm 1. ``PPOConfig`` comes from ``config.py``, which needs
no torch. The agent owns the trunk and the value head; the heads that imagine belong to the world model's own optimiser,
so that switching them off changes nothing here, to the bit.

The losses are those of ``worldmtp.objective.policy_losses``, means over the real steps of a minibatch, and over its
reply tokens in ``observation.py``. Left out: value clipping (Andrychowicz et al. 2021, 3.2: no gain).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from worldmtp.agents.action_masks import forbid
from worldmtp.agents.config import PPOConfig
from worldmtp.agents.gradient_steps import check_finite, clipped_step, summed
from worldmtp.agents.observation import observation_loss
from worldmtp.agents.rollout import Rollout, TensorBatch, reply_mask, state_index
from worldmtp.agents.tail import ends_with_tail, live_logprobs, tail_logprob
from worldmtp.agents.trust_region import TrustRegion
from worldmtp.dynamics import check_temperature
from worldmtp.model import MTPModel
from worldmtp.model.categorical import entropy_per_token
from worldmtp.model.precision import check_trained_weights, full_precision
from worldmtp.model.trunk import TrunkFeatures, last_hidden_states
from worldmtp.model.world_heads import binned_mean, two_hot_cross_entropy
from worldmtp.objective.policy_losses import (
    all_action_loss_per_token,
    explained_variance,
    improved_kl_per_token,
    masked_mean,
    ppo_loss,
    ppo_terms,
)
from worldmtp.tracking.late_numbers import LateNumbers

# What an update is given besides the rollout


@dataclass(frozen=True)
class LikelyTokens(TensorBatch):
    """The likeliest tokens of each state, most likely first, and of the whole policy its entropy and what is left.

    This is all that is kept of a policy: the vocabulary of a real model has 150 thousand entries per state.
    """

    ids: Int[Tensor, "batch step likely"]
    logprobs: Float[Tensor, "batch step likely"]
    entropy: Float[Tensor, "batch step"]
    rest: Float[Tensor, "batch step"]
    """Log-probability of all other tokens together; minus infinity where there are none."""


@dataclass(frozen=True)
class PolicyStats:
    """A no-gradient reading of a fresh rollout, at the temperature of acting, before anything trains on it.

    ``values`` has one entry more than there are steps; the one after the last step is that of the final text.
    ``likely`` is None unless the advantage estimator asks for alternatives to the actions taken.
    """

    values: Float[Tensor, "batch step_plus_1"]
    ref_logprobs: Float[Tensor, "batch step"]
    likely: LikelyTokens | None = None


@dataclass(frozen=True)
class AdvantagePlan(TensorBatch):
    """Advantages of the actions taken and, where there is an all-action term, of the tokens that were not taken.

    ``live`` is empty in plain PPO. ``live_logprobs`` are log pi_old, and minus infinity at padding. Where ``live_ids``
    end with ``TAIL``, the last place is that of all tokens but the live ones.

    ``improved``, a policy to be learnt beside, is empty unless somebody has searched for one. Its ids end with
    ``TAIL``, its log-probabilities are minus infinity at padding; ``improved_weight`` is what a state counts.
    """

    advantages: Float[Tensor, "batch step"]
    value_targets: Float[Tensor, "batch step"]
    live_ids: Int[Tensor, "batch step live"]
    live_logprobs: Float[Tensor, "batch step live"]
    live_advantages: Float[Tensor, "batch step live"]
    improved_ids: Int[Tensor, "batch step improved"] | None = None
    improved_logprobs: Float[Tensor, "batch step improved"] | None = None
    improved_weight: Float[Tensor, "batch step"] | None = None
    action_weights: Float[Tensor, "batch step"] | None = None
    """What each action counts in the policy's means, see ``ppo_terms``; 1 where the policy chose it."""

    def __post_init__(self) -> None:
        nothing = self.advantages.new_zeros((*self.advantages.shape, 0))
        given = {"improved_ids": nothing.long(), "improved_logprobs": nothing}
        given |= {"improved_weight": torch.zeros_like(self.advantages)}
        given |= {"action_weights": torch.ones_like(self.advantages)}
        for name, value in given.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @property
    def improved(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Ids, log-probabilities and weights of the improved policy; None where there is none."""
        ids, logprobs, weight = self.improved_ids, self.improved_logprobs, self.improved_weight
        if ids is None or logprobs is None or weight is None or ids.shape[-1] == 0:
            return None
        return ids, logprobs, weight


# The forward pass


def gather_states(
    hidden: Float[Tensor, "batch time hidden"], index: Int[Tensor, "batch step"]
) -> Float[Tensor, "batch step hidden"]:
    """Return the hidden vectors at ``index`` of the time axis."""
    return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))


def check_eval_mode(model: MTPModel) -> None:
    """Raise if the model is in training mode.

    With dropout the policy that acts, the one that is read and the one that is updated would be three networks.

    Raises:
        ValueError: it is.
    """
    if model.training:
        raise ValueError(
            "the model is in training mode, so its dropout would make the policy that acts another one than the policy "
            "that is updated; call model.eval() first (gradients are computed all the same)."
        )


def likely_tokens(log_policy: Float[Tensor, "batch step vocab"], num_likely: int) -> LikelyTokens:
    """Return the ``num_likely`` likeliest tokens of a policy, or all there are."""
    logprobs, ids = log_policy.topk(min(num_likely, log_policy.shape[-1]), dim=-1)
    rest = tail_logprob(log_policy, ids, torch.ones_like(ids, dtype=torch.bool))
    return LikelyTokens(ids, logprobs, entropy_per_token(log_policy), rest)


@torch.no_grad()
def policy_stats(
    model: MTPModel,
    reference: PreTrainedModel | None,
    rollout: Rollout,
    temperature: float,
    num_likely: int = 0,
    features: TrunkFeatures | None = None,
    micro_batch_size: int | None = None,
) -> PolicyStats:
    """Read ``rollout`` with the policy that acted it and with the reference, the policy itself where there is none.

    ``features``, the trunk's of this rollout's text, save its forward where they are at hand. Logits over the
    vocabulary are computed for ``micro_batch_size`` episodes at once and not kept.

    Raises:
        ValueError: the model is in training mode.
    """
    check_eval_mode(model)
    if features is None:
        features = model.trunk_features(rollout.input_ids, rollout.attention_mask)
    states = gather_states(features.post_norm, state_index(rollout))
    values = binned_mean(model.world_heads.value(states), model.world_heads.value_bins)
    likely, references = [], []
    for rows in torch.arange(len(rollout)).split(micro_batch_size or len(rollout)):
        part = rollout.select(rows)
        if num_likely:
            logits = model.logits_of(states[rows, :-1])
            likely.append(likely_tokens(_log_policy(logits, temperature, part), num_likely))
        if reference is not None:
            hidden = last_hidden_states(reference, part.input_ids, part.attention_mask)
            head = reference.get_output_embeddings()
            logits = model.policy_logits(head(gather_states(hidden, state_index(part)[:, :-1])))
            log_reference = _log_policy(logits, temperature, part)
            references.append(log_reference.gather(2, part.actions[..., None])[..., 0])
    return PolicyStats(
        values,
        ref_logprobs=torch.cat(references) if references else rollout.logprobs,
        likely=LikelyTokens.cat(likely) if likely else None,
    )


def _log_policy(
    logits: Float[Tensor, "batch step vocab"], temperature: float, rollout: Rollout
) -> Float[Tensor, "batch step vocab"]:
    """Return the log-probabilities of the acting policy: at its temperature, over the tokens that were allowed."""
    return forbid(full_precision(logits) / temperature, rollout.allowed).log_softmax(dim=-1)


# The update


class PPOAgent:
    """The policy (trunk) and its value head, and how they learn; ``temperature`` is that of acting."""

    def __init__(self, model: MTPModel, config: PPOConfig, temperature: float) -> None:
        check_temperature(temperature)
        self.model = model
        self.config = config
        self._temperature = temperature
        self._parameters = [*model.trunk.parameters(), *model.world_heads.value.parameters()]  # tied ones once
        check_trained_weights("PPOAgent", self._parameters)
        betas = (0.9, config.adam_beta2)
        self.optimizer = torch.optim.Adam(self._parameters, lr=config.learning_rate, betas=betas, eps=1e-5)
        self.num_updates = 0

    def update(
        self,
        rollout: Rollout,
        stats: PolicyStats,
        plan: AdvantagePlan,
        generator: torch.Generator,
        remaining: float = 1.0,
        num_epochs: int | None = None,
        ent_coef: float | None = None,
    ) -> dict[str, float]:
        """Train for some epochs of minibatches on one rollout; return the metrics' means over the minibatches.

        With ``target_kl`` the minibatch whose approximate KL exceeds it is the last one: it is not trained on, and the
        step before it is taken back to where the limit is (``TrustRegion``). At the first minibatch the ratio is 1 and
        approx_kl 0. ``remaining`` is the share of the run that is left, which an annealed learning rate is proportional
        to. ``num_epochs`` and ``ent_coef`` replace the config's.

        Raises:
            FloatingPointError: a loss is not finite; its step was not applied (``clipped_step``).
            ValueError: the model is in training mode.
        """
        check_eval_mode(self.model)
        late, read = LateNumbers(check_finite), list[dict[str, float]]()
        has_tail = ends_with_tail(plan.live_ids)
        limit = self.config.target_kl
        region = None if limit is None else TrustRegion(self._parameters, limit)
        num_read, num_steps, rates = 0, 0, 0.0
        for minibatch in self._minibatches(len(rollout), num_epochs or self.config.num_epochs, generator):
            rows = minibatch.to(rollout.input_ids.device, non_blocking=True)
            self._accumulate(
                rollout.select(rows), stats.ref_logprobs[rows], plan.select(rows), has_tail, late, ent_coef
            )
            num_read += 1
            if region is not None:  # which the host has to wait for
                ours = late.take()
                read += ours
                if region.is_left(sum(numbers.get("losses/approx_kl", 0.0) for numbers in ours)):
                    break
                region.keep()
            rates += self._set_learning_rate(remaining)
            clipped_step(self.optimizer, self.config.max_grad_norm, "losses/grad_norm", late)
            num_steps += 1
            self.num_updates += 1
        read += late.take()
        largest_ratio = max(numbers.pop("losses/ratio_max", 0.0) for numbers in read)
        of_steps = {"losses/learning_rate": rates / max(1, num_steps)}
        sums = summed(read)
        if "losses/grad_norm" in sums:
            of_steps["losses/grad_norm"] = sums.pop("losses/grad_norm") / num_steps
        means = {name: value / num_read for name, value in sums.items()} | of_steps
        targets = plan.value_targets[rollout.step_mask]
        errors = targets - stats.values[:, :-1][rollout.step_mask]
        if region is not None:
            means["losses/num_updates"] = float(num_steps)
        return means | {
            "losses/ratio_max": largest_ratio,
            "losses/explained_variance": explained_variance(errors, targets),
        }

    def squared_gradient_norm(self, rollout: Rollout, plan: AdvantagePlan) -> float:
        """Return |g|^2 of the plan's policy terms alone, over the whole rollout, as it was acted; no step is taken."""
        check_eval_mode(self.model)
        size = self.config.micro_batch_size or -(-len(rollout) // self.config.num_minibatches)
        has_tail = ends_with_tail(plan.live_ids)
        self.optimizer.zero_grad(set_to_none=True)
        for rows in torch.arange(len(rollout)).split(size):
            part = rollout.select(rows)
            _, terms = self._loss(part, part.logprobs, plan.select(rows), rollout, has_tail)
            policy = [terms[name] for name in ("losses/policy", "losses/counterfactual") if name in terms]
            torch.stack(policy).sum().backward()
        norm = sum(float(weight.grad.square().sum()) for weight in self._parameters if weight.grad is not None)
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _minibatches(self, number: int, num_epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the episodes of each minibatch, epoch by epoch, each epoch in an order of its own."""
        size = -(-number // self.config.num_minibatches)
        for _ in range(num_epochs):
            yield from torch.randperm(number, generator=generator).split(size)

    def _set_learning_rate(self, remaining: float) -> float:
        config = self.config
        warmth = min(1.0, (self.num_updates + 1) / config.warmup_updates) if config.warmup_updates else 1.0
        annealed = remaining if config.anneals_learning_rate else 1.0
        learning_rate = config.learning_rate * warmth * annealed
        self.optimizer.param_groups[0]["lr"] = learning_rate
        return learning_rate

    def _accumulate(
        self,
        rollout: Rollout,
        ref_logprobs: Tensor,
        plan: AdvantagePlan,
        has_tail: bool,
        late: LateNumbers,
        ent_coef: float | None = None,
    ) -> None:
        """Leave a minibatch's gradient in the weights, added up over its micro-batches, and its terms in ``late``."""
        self.optimizer.zero_grad(set_to_none=True)
        places = torch.arange(len(rollout), device=rollout.input_ids.device)
        for rows in places.split(self.config.micro_batch_size or len(rollout)):
            part = (rollout.select(rows), ref_logprobs[rows], plan.select(rows))
            loss, terms = self._loss(*part, rollout, has_tail, ent_coef)
            late.add(terms | {"losses/total": loss})
            loss.backward()

    def _loss(
        self,
        rollout: Rollout,
        ref_logprobs: Tensor,
        plan: AdvantagePlan,
        whole: Rollout,
        has_tail: bool,
        ent_coef: float | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return a micro-batch's part of the loss of the ``whole`` minibatch, whose tokens count, and its terms."""
        config, mask = self.config, rollout.step_mask
        num_actions, num_replied = whole.step_mask.sum(), reply_mask(whole).sum()
        hidden = last_hidden_states(self.model.trunk, rollout.input_ids, rollout.attention_mask)
        states = gather_states(hidden, state_index(rollout)[:, :-1])
        log_policy = _log_policy(self.model.logits_of(states), self._temperature, rollout)
        # Padding stands where there is no step. Its probability may round to 0, and the mean's mask comes too late: the
        # slope of the KL's estimate is infinite there, and zero times it is NaN.
        logprobs = torch.where(mask, log_policy.gather(2, rollout.actions[..., None])[..., 0], 0.0)
        value_logits = self.model.world_heads.value(states.detach() if config.detach_value else states)
        terms = ppo_terms(
            logprobs,
            rollout.logprobs,
            ref_logprobs,
            plan.advantages,
            entropy_per_token(log_policy),
            two_hot_cross_entropy(value_logits, plan.value_targets, self.model.world_heads.value_bins),
            mask,
            num_actions,
            config.clip_coef,
            plan.action_weights,
        )
        if plan.live_ids.shape[-1] > 0:
            live = live_logprobs(log_policy, plan.live_ids, plan.live_logprobs, has_tail)
            others = all_action_loss_per_token(live, plan.live_logprobs, plan.live_advantages, config.clip_coef)
            terms["losses/counterfactual"] = masked_mean(others, mask, num_actions)
        if plan.improved is not None:
            ids, improved, weight = plan.improved
            from_improved = improved_kl_per_token(live_logprobs(log_policy, ids, improved, True), improved)
            terms["losses/search"] = masked_mean(weight * from_improved, mask, num_actions)
        loss = ppo_loss(terms, config.vf_coef, config.kl_coef, config.ent_coef if ent_coef is None else ent_coef)
        if config.observation_coef:
            terms["losses/observation"] = foreseen = observation_loss(self.model, hidden, rollout, num_replied)
            loss = loss + config.observation_coef * foreseen
        return loss, terms

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state; the model is saved by whoever owns it."""
        return {"optimizer": self.optimizer.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the optimiser's state."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_updates = int(state["num_updates"])
