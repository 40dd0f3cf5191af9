"""From TRL's padded completions to a policy's decisions and back, and PPO's advantages over them.

A completion is ``time`` long; the policy chose some of its tokens, and a world or a tool wrote the others, which are no
steps of the episode: what they replied is where the next decision is taken, however long it is. ``step`` runs over the
decisions alone, moved to the left. Values are of states: ``values[:, i]`` is that of the text before token i of the
completion, ``values[:, length]`` that of the whole text. A reward on a token that the policy did not choose was earned
by the decision before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.returns import episode_discounts, episode_lambdas, generalized_advantages, lambda_returns


@dataclass(frozen=True)
class Decisions:
    """Where the policy's decisions stand among the tokens of completions.

    Attributes:
        mask: which tokens of a completion the policy chose.
        length: how many tokens of the completion are real.
    """

    mask: Bool[Tensor, "batch time"]
    length: Int[Tensor, " batch"]

    @property
    def step_mask(self) -> Bool[Tensor, "batch time"]:
        """Return which steps there are, the first ones of a row."""
        steps = torch.arange(self.mask.shape[1], device=self.mask.device)
        return steps < self.mask.sum(dim=1, keepdim=True)

    @property
    def last_step(self) -> Bool[Tensor, "batch time"]:
        """Return the last step of each row that has one."""
        steps = torch.arange(self.mask.shape[1], device=self.mask.device)
        return steps == self.mask.sum(dim=1, keepdim=True) - 1

    def order(self) -> Int[Tensor, "batch time"]:
        """Return the token of each step; behind the last step, tokens that are none."""
        return (~self.mask).long().argsort(dim=1, stable=True)

    def to_tokens(self, per_step: Float[Tensor, "batch step"]) -> Float[Tensor, "batch time"]:
        """Return what the decisions have at their tokens; zero at all others."""
        moved = torch.where(self.step_mask, per_step, 0.0)
        return torch.zeros_like(moved).scatter(1, self.order(), moved)

    def step_values(self, values: Float[Tensor, "batch time_plus_1"]) -> Float[Tensor, "batch step_plus_1"]:
        """Return the values of the states decisions were taken in, and behind the last one that of the whole text."""
        final = values.gather(1, self.length[:, None])
        taken = values[:, :-1].gather(1, self.order())
        return torch.cat([torch.where(self.step_mask, taken, final), final], dim=1)

    def step_rewards(self, per_token: Float[Tensor, "batch time"]) -> Float[Tensor, "batch step"]:
        """Return what each decision earned, with what was paid on the tokens after it up to the next.

        Raises:
            ValueError: a reward stands before a row's first decision, where nobody earned it.
        """
        step = self.mask.long().cumsum(dim=1) - 1
        unearned = (step < 0) & (per_token != 0)
        if bool(unearned.any()):
            row, token = unearned.nonzero()[0].tolist()
            raise ValueError(
                f"token_rewards of completion {row} pay {float(per_token[row, token])} at token {token}, before the "
                "policy's first decision; pay it at a token that the policy chose, or after one."
            )
        return torch.zeros_like(per_token).scatter_add(1, step.clamp(min=0), per_token)


@dataclass(frozen=True)
class TokenPlan:
    """What PPO learns from, at the tokens of the decisions and zero elsewhere; advantages are not scaled."""

    advantages: Float[Tensor, "batch time"]
    value_targets: Float[Tensor, "batch time"]


def token_plan(
    decisions: Decisions,
    rewards: Float[Tensor, "batch step"],
    values: Float[Tensor, "batch time_plus_1"],
    truncated: Bool[Tensor, " batch"],
    gamma: float,
    gae_lambda: float,
    bootstrap_truncated: bool,
) -> TokenPlan:
    """Return GAE of the decisions, and the returns that followed them (lambda = 1) as the value's targets.

    Both by ``worldmtp.returns``, and with the agent's treatment of ends.
    """
    step_mask, last = decisions.step_mask, decisions.last_step
    cut, over = last & truncated[:, None], last & ~truncated[:, None]
    discounts = episode_discounts(step_mask, over, cut, gamma, bootstrap_truncated)
    step_values = decisions.step_values(values)
    advantages = generalized_advantages(rewards, discounts, step_values, episode_lambdas(step_mask, last, gae_lambda))
    targets = lambda_returns(rewards, discounts, step_values[:, 1:], episode_lambdas(step_mask, last, 1.0))
    return TokenPlan(decisions.to_tokens(advantages), decisions.to_tokens(targets))


def padded_token_rewards(
    rows: Sequence[Mapping[str, Any]], name: str, lengths: Sequence[int], like: Float[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """Return a rollout's field of one number for each token of a completion, padded with zeros.

    Raises:
        ValueError: a row has more or fewer numbers than its completion has tokens, or one that is not finite.
    """
    padded = torch.zeros_like(like)
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        numbers = torch.as_tensor(row[name], dtype=like.dtype, device=like.device)
        if numbers.shape != (length,):
            raise ValueError(
                f"{name} of completion {index} has the shape {tuple(numbers.shape)}, expected ({length},): one number "
                "for each of its tokens, zero where nothing was paid."
            )
        if not bool(numbers.isfinite().all()):
            raise ValueError(f"{name} of completion {index} is not finite: {numbers.tolist()}.")
        padded[index, :length] = numbers
    return padded
