"""What the current policy makes of a rollout: its states' hidden vectors, next-token log-probabilities and values."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from worldmtp.agents.action_masks import forbid
from worldmtp.agents.config import PPOConfig
from worldmtp.agents.trajectory import Rollout, TensorBatch
from worldmtp.model import MTPModel
from worldmtp.model.precision import full_precision
from worldmtp.model.trunk import TrunkFeatures, position_ids_from_attention_mask
from worldmtp.model.world_heads import binned_mean
from worldmtp.returns import lambda_returns


@dataclass(frozen=True)
class PolicyStats(TensorBatch):
    """A no-gradient reading of a fresh rollout, before anything trains on it.

    ``log_policy[:, t]`` are the log-probabilities in s_t, at the temperature of acting; ``values`` has one entry more
    than there are steps, the one after the last step being that of the final text.
    """

    log_policy: Float[Tensor, "batch time vocab"]
    values: Float[Tensor, "batch time_plus_1"]
    ref_logprobs: Float[Tensor, "batch time"]


def state_index(rollout: Rollout) -> Int[Tensor, "batch time_plus_1"]:
    """Where on the length axis the last token of s_0 .. s_T stands; after the last step, the end of the text."""
    last = rollout.attention_mask.sum(dim=1, keepdim=True) - 1
    before = torch.where(rollout.step_mask, rollout.action_index - 1, last)
    return torch.cat([before, last], dim=1)


def action_mask(rollout: Rollout) -> Bool[Tensor, "batch length"]:
    """Tokens the policy chose. Steps that are not there write False to index 0, a prompt token."""
    return torch.zeros_like(rollout.attention_mask).scatter(1, rollout.action_index, rollout.step_mask)


def hidden_states(
    trunk: PreTrainedModel, input_ids: Int[Tensor, "batch length"], attention_mask: Bool[Tensor, "batch length"]
) -> Float[Tensor, "batch length hidden"]:
    """The backbone's last hidden state, after its final norm."""
    return trunk.base_model(
        input_ids=input_ids,
        attention_mask=attention_mask.long(),
        position_ids=position_ids_from_attention_mask(attention_mask),
        use_cache=False,
    ).last_hidden_state


def gather_states(
    hidden: Float[Tensor, "batch length hidden"], index: Int[Tensor, "batch steps"]
) -> Float[Tensor, "batch steps hidden"]:
    """Hidden vectors at ``index`` of the length axis."""
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


@torch.no_grad()
def policy_stats(
    model: MTPModel,
    reference: PreTrainedModel | None,
    rollout: Rollout,
    temperature: float,
    features: TrunkFeatures | None = None,
) -> PolicyStats:
    """Read ``rollout`` with the policy that acted it and with the reference, the policy itself where there is none.

    ``features``, the trunk's of this rollout's text, save its forward where they are at hand.

    Raises:
        ValueError: the model is in training mode.
    """
    check_eval_mode(model)
    if features is None:
        features = model.trunk_features(rollout.input_ids, rollout.attention_mask)
    index = state_index(rollout)
    states = gather_states(features.post_norm, index)
    log_policy = forbid(full_precision(model.logits_of(states[:, :-1])) / temperature, rollout.allowed).log_softmax(
        dim=-1
    )
    ref_logprobs = rollout.logprobs
    if reference is not None:
        hidden = hidden_states(reference, rollout.input_ids, rollout.attention_mask)
        logits = model.logit_changes(reference.get_output_embeddings()(gather_states(hidden, index[:, :-1])))
        log_reference = forbid(full_precision(logits) / temperature, rollout.allowed).log_softmax(dim=-1)
        ref_logprobs = log_reference.gather(2, rollout.actions[..., None])[..., 0]
    world = model.world_heads(states)
    return PolicyStats(log_policy, binned_mean(world.value_logits, model.world_heads.value_bins), ref_logprobs)


def discounts_of(rollout: Rollout, config: PPOConfig) -> Float[Tensor, "batch time"]:
    """Gamma where value goes on after the step, zero where it ends and where there is no step."""
    ends = rollout.terminated if config.bootstrap_truncated else rollout.terminated | rollout.truncated
    return torch.where(ends | ~rollout.step_mask, 0.0, config.gamma)


def lambdas_of(rollout: Rollout, lambda_: float) -> Float[Tensor, "batch time"]:
    """Lambda inside an episode, zero at its last step: nothing flows back over the border."""
    return torch.where(rollout.terminated | rollout.truncated | ~rollout.step_mask, 0.0, lambda_)


def episode_returns(rollout: Rollout) -> Float[Tensor, " batch"]:
    """Undiscounted sum of an episode's rewards, added up in double precision: ten times .1 are 1."""
    paid = torch.where(rollout.step_mask, rollout.rewards, 0.0)
    return paid.double().sum(dim=1).to(paid.dtype)


def start_returns(rollout: Rollout, stats: PolicyStats, config: PPOConfig) -> Float[Tensor, " batch"]:
    """Discounted return of an episode from s_0; bootstrapped by the critic at a truncation that goes on."""
    discounts, lambdas = discounts_of(rollout, config), lambdas_of(rollout, 1.0)
    return lambda_returns(rollout.rewards, discounts, stats.values[:, 1:], lambdas)[:, 0]
