"""ECHO's term: the policy learns to foresee what the world writes back, in the forward pass that its update makes.

Shrivastava et al. 2026, https://arxiv.org/abs/2605.24517: loss = policy loss of the action tokens + lambda times the
cross-entropy of the environment's tokens, a mean over these. Each reply token is predicted by the state before it, as
every token of a language model is; the first by the state that has read the end of the policy's turn. The temperature
is 1, whatever that of acting: here the policy is a model of the world, which has no temperature. No action mask applies
either, since it binds what the policy writes.

It takes no side in what is good, so unlike the uses of imagination it changes the expectation of the policy's gradient.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.agents.config import PPOConfig
from worldmtp.agents.rollout import Rollout, reply_mask
from worldmtp.envs.task import Task, TurnTask
from worldmtp.model import MTPModel
from worldmtp.model.precision import full_precision


def check_replies(task: Task, config: PPOConfig) -> None:
    """Raise if the agent is to foresee replies and nobody replies.

    Raises:
        ValueError: ``observation_coef`` is positive and the task is no conversation.
    """
    if config.observation_coef and not isinstance(task, TurnTask):
        raise ValueError(
            f"agent.ppo.observation_coef={config.observation_coef} with {type(task).__name__}, which writes nothing "
            "after the prompt: there is no reply to foresee. Set it to 0, or train in a world that replies, such as "
            "env=guess_number."
        )


def observation_loss(
    model: MTPModel, hidden: Float[Tensor, "batch time hidden"], rollout: Rollout, num_replied: Int[Tensor, ""]
) -> Float[Tensor, ""]:
    """Return the sum of -log p(reply token | the text before it) over ``num_replied``, in nats; 0 without replies.

    ``hidden`` are the trunk's of the rollout's text, with their gradient. ``num_replied`` counts the reply tokens of a
    whole minibatch, so that the parts of its micro-batches add up to its mean. Logits are made at replies alone.
    """
    replied = reply_mask(rollout)[:, 1:]
    logits = full_precision(model.logits_of(hidden[:, :-1][replied]))
    surprisal = torch.nn.functional.cross_entropy(logits, rollout.input_ids[:, 1:][replied], reduction="sum")
    return surprisal / num_replied.clamp(min=1)
