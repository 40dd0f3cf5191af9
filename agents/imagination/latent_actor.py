"""What ``imagination=latent`` makes of an imagined rollout: targets of its actions, and rows that PPO can train on.

The expectation is taken over tokens that the heads sample, and the policy is the trunk's; ``latent.py`` says why, and
what corrects for it.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from worldmtp.agents.advantages import correlation
from worldmtp.agents.imagination.imagined_returns import Acting
from worldmtp.agents.ppo import gather_states
from worldmtp.agents.rollout import Rollout, state_index
from worldmtp.dynamics import ImaginedRollout, LatentState, Policy, TurnRoom, WorldModel
from worldmtp.model import MTPModel
from worldmtp.model.categorical import draw
from worldmtp.model.world_heads import binned_mean
from worldmtp.returns import lambda_returns


@dataclass(frozen=True)
class ActorTargets:
    """What an imagined rollout says of its actions; zero weight where there is none."""

    returns: Float[Tensor, "start horizon"]
    values: Float[Tensor, "start horizon"]
    weights: Float[Tensor, "start horizon"]

    @property
    def advantages(self) -> Float[Tensor, "start horizon"]:
        """Return the weighted advantages, in units of the reward."""
        return self.weights * (self.returns - self.values)


def actor_targets(
    imagined: ImaginedRollout,
    logprobs: Float[Tensor, "start horizon"],
    ends: Bool[Tensor, "start horizon"],
    gamma: float,
    lambda_: float,
    return_range: tuple[float, float],
    most: float = 1.0,
) -> ActorTargets:
    """Return lambda-returns, values and weights of imagined actions that the policy takes with ``logprobs``.

    ``ends`` are the actions after which the rules of the environment end the episode, whatever the model says.
    ``most`` is where the ratios pi / q and their products are cut; infinity is unbiased, and has unbounded variance.
    """
    inside = imagined.in_turn
    ratio = torch.where(inside, logprobs - imagined.logprobs, 0.0).exp()
    following = torch.cat([ratio[:, 1:], torch.ones_like(ratio[:, :1])], dim=1)
    discounts = torch.where(inside, gamma * imagined.continuations, 1.0).masked_fill(ends, 0.0)
    returns = lambda_returns(imagined.rewards, discounts, imagined.values[:, 1:], lambda_ * following.clamp(max=most))
    weights = ratio.cumprod(dim=1).clamp(max=most) * imagined.alive
    return ActorTargets(
        returns=returns.clamp(*return_range),
        values=imagined.values[:, :-1],
        weights=torch.where(inside, weights, 0.0),
    )


def rule_ends(actions: Int[Tensor, "start horizon"], turn: TurnRoom, bootstraps: bool) -> Bool[Tensor, "start horizon"]:
    """Return after which actions value ends for certain: EOS, and the last of the budget unless that ``bootstraps``."""
    is_eos = actions == turn.eos_id
    if bootstraps:
        return is_eos
    written = torch.arange(1, actions.shape[1] + 1, device=actions.device)
    return is_eos | (written == turn.room[:, None])


def imagined_rows(real: Rollout, steps: Int[Tensor, " start"], imagined: ImaginedRollout, eos_id: int) -> Rollout:
    """Return imagined episodes as rows of the shape of ``real``: row n goes on from step ``steps[n]`` of its row n.

    Rewards are the imagined ones; ``logprobs`` are zero until the trunk has read the tokens.
    """
    width, length = real.actions.shape[1], real.input_ids.shape[1]

    def on_steps(values: Tensor) -> Tensor:
        return functional.pad(values[:, :width], (0, max(0, width - values.shape[1])))

    first = real.action_index.gather(1, steps[:, None])
    inside = on_steps(imagined.in_turn)
    actions = torch.where(inside, on_steps(imagined.actions), 0)
    places = first + torch.arange(width, device=first.device)
    written = torch.zeros_like(functional.pad(real.input_ids, (0, 1)))
    written = written.scatter(1, torch.where(inside, places, length), actions)[:, :length]
    index = torch.arange(length, device=first.device)
    last = inside & ~functional.pad(inside[:, 1:], (0, 1))
    terminated = last & (actions == eos_id)
    return replace(
        real,
        input_ids=torch.where(index < first, real.input_ids, written),
        attention_mask=index < first + inside.sum(dim=1, keepdim=True),
        action_index=torch.where(inside, places, 0),
        actions=actions,
        step_mask=inside,
        logprobs=torch.zeros_like(real.logprobs),
        rewards=torch.where(inside, on_steps(imagined.rewards), 0.0).to(real.rewards.dtype),
        terminated=terminated,
        truncated=last & ~terminated,
        exact=torch.zeros_like(real.exact),
    )


@torch.no_grad()
def read_by_trunk(
    model: MTPModel, acting: Acting, rollout: Rollout, micro_batch_size: int | None
) -> tuple[Float[Tensor, "batch step"], Float[Tensor, "batch step_plus_1"]]:
    """Return log pi of the actions of a rollout by the policy of now, and the values of its states.

    Log-probabilities are zero where there is no step.
    """
    logprobs, values = [], []
    for rows in torch.arange(len(rollout)).split(micro_batch_size or len(rollout)):
        part = rollout.select(rows)
        hidden = model.trunk_features(part.input_ids, part.attention_mask).post_norm
        states = gather_states(hidden, state_index(part))
        log_policy = acting.policy(model.logits_of(states[:, :-1]).flatten(0, 1)).view(*part.actions.shape, -1)
        logprobs.append(torch.where(part.step_mask, log_policy.gather(2, part.actions[..., None])[..., 0], 0.0))
        values.append(binned_mean(model.world_heads.value(states), model.world_heads.value_bins))
    return torch.cat(logprobs), torch.cat(values)


@torch.no_grad()
def action_skill(
    world_model: WorldModel[Any],
    state: LatentState,
    actions: Int[Tensor, "start horizon"],
    inside: Bool[Tensor, "start horizon"],
    returns: Float[Tensor, "start horizon"],
    policy: Policy,
    gamma: float,
    generator: torch.Generator,
) -> float:
    """Return how well a world model tells the real action from another one, at each imagined depth; 0 is no skill.

    ``state`` is where real ``actions`` begin, ``returns`` what followed each of them, where ``inside``. It is Pearson's
    correlation of Q(s, a) - Q(s, a') with G - V(s): a is real, a' sampled by the policy at the same latent, Q = reward
    plus discounted value of the next latent. Of a model whose Q does not depend on the action the difference has mean
    zero in every state, however well its values explain returns.
    """
    differences, surprises = [], []
    prediction = world_model.predict(state)
    for depth in range(actions.shape[1]):
        assert prediction.logits is not None
        other = draw(policy(prediction.logits), generator)
        value = prediction.value
        imagined = world_model.predict(world_model.step(state, other), with_logits=False)
        state = world_model.step(state, actions[:, depth])
        prediction = world_model.predict(state, with_logits=depth + 1 < actions.shape[1])
        real, sampled = (one.reward + gamma * one.continuation * one.value for one in (prediction, imagined))
        differences.append((real - sampled)[inside[:, depth]])
        surprises.append((returns[:, depth] - value)[inside[:, depth]])
    return correlation(torch.cat(differences), torch.cat(surprises))
