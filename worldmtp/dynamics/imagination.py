"""``imagine``: roll any world model forward by the policy that acts, and what is checked before.

Temperature and masks belong to the policy, which has no default: imagined returns of another policy say nothing about
the one that acts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.dynamics.protocol import Dynamics, State, WorldModel
from worldmtp.model.categorical import draw, entropy_per_token
from worldmtp.model.precision import full_precision

Policy = Callable[[Float[Tensor, "state vocab"]], Float[Tensor, "state vocab"]]
"""Logits to the log-probabilities that actions are drawn from (temperature, masks): the policy that acts."""


@dataclass(frozen=True)
class TurnRoom:
    """How long the policy's turn goes on in a conversation, for each state of a batch.

    A turn is over with ``eos_id``, or when ``room``, the tokens that the policy may still write, is used up.
    """

    eos_id: int
    room: Int[Tensor, " state"]

    def select(self, rows: Int[Tensor, " selected"]) -> "TurnRoom":
        """Return the room of some states, as ``LatentState.select``."""
        return TurnRoom(self.eos_id, self.room[rows])

    def after(self, actions: Int[Tensor, " state"]) -> "TurnRoom":
        """Return the room that is left after one more token each."""
        return TurnRoom(self.eos_id, torch.where(actions == self.eos_id, 0, self.room - 1))


@dataclass(frozen=True)
class ImaginedRollout:
    """Rollouts of a world model from a batch of roots.

    ``rewards[:, h]`` and ``continuations[:, h]`` belong to ``actions[:, h]``; ``values`` has one entry more, its first
    that of the root. ``alive[:, h]`` is the probability that step h is still inside the episode (product of the
    continuations before it): imagined steps after an imagined end weigh nothing.

    ``in_turn[:, h]`` is False from the first step that is not the policy's to take: its turn is over, and what follows
    is the world's reply. There the rollout stands still: reward 0, continuation 1, the value of the border, and a
    log-probability and an entropy of 0.
    """

    actions: Int[Tensor, "root horizon"]
    logprobs: Float[Tensor, "root horizon"]
    entropies: Float[Tensor, "root horizon"]
    rewards: Float[Tensor, "root horizon"]
    continuations: Float[Tensor, "root horizon"]
    alive: Float[Tensor, "root horizon"]
    values: Float[Tensor, "root horizon_plus_1"]
    in_turn: Bool[Tensor, "root horizon"]


def acting_policy(temperature: float) -> Policy:
    """Return the policy that acts at ``temperature``: log softmax(logits / temperature).

    It is the law of ``TrunkPolicy`` and of PPO's ratios. Acting knows no other change of the logits than those that the
    model itself makes, so there is no mask here either.

    Raises:
        ValueError: the temperature is not positive and finite.
    """
    check_temperature(temperature)

    def policy(logits: Float[Tensor, "state vocab"]) -> Float[Tensor, "state vocab"]:
        return (full_precision(logits) / temperature).log_softmax(dim=-1)

    return policy


def check_temperature(temperature: float) -> None:
    """Raise if a policy cannot act at this temperature.

    Raises:
        ValueError: it is not positive and finite.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be positive and finite; for greedy acting pass no generator.")


def imagine(
    world_model: WorldModel[State],
    state: State,
    horizon: int,
    policy: Policy,
    generator: torch.Generator | None,
    turn: TurnRoom | None = None,
) -> ImaginedRollout:
    """Roll a world model forward ``horizon`` steps with ``policy``; greedy where there is no generator.

    ``turn`` is the room of each state's turn in a conversation. World models do not know what a world replies, so a
    rollout stops at the end of the policy's turn; see ``ImaginedRollout.in_turn``. The value there is the world model's
    own value of the text that ends with the turn, whose target in training is the return of all that followed the
    reply. Without ``turn`` the whole text is the policy's.

    The last state is read without logits: nobody acts there. A world model that is blind to actions foresees what comes
    on average; its actions are drawn each by itself.

    Raises:
        ValueError: ``horizon`` is not positive, or beyond what the dynamics can do.
    """
    check_horizon(world_model, horizon)
    prediction = world_model.predict(state)
    actions, logprobs, entropies, rewards, continuations, values = [], [], [], [], [], [prediction.value]
    open_turns = []
    for step in range(horizon):
        assert prediction.logits is not None
        log_policy = policy(prediction.logits)
        chosen = draw(log_policy, generator)
        is_open = torch.ones_like(chosen, dtype=torch.bool) if turn is None else turn.room > 0
        state = world_model.step(state, chosen)
        prediction = world_model.predict(state, with_logits=step + 1 < horizon)
        actions.append(chosen)
        open_turns.append(is_open)
        logprobs.append(torch.where(is_open, log_policy.gather(1, chosen[:, None])[:, 0], 0.0))
        entropies.append(torch.where(is_open, entropy_per_token(log_policy), 0.0))
        rewards.append(torch.where(is_open, prediction.reward, 0.0))
        continuations.append(torch.where(is_open, prediction.continuation, 1.0))
        values.append(torch.where(is_open, prediction.value, values[-1]))
        turn = turn.after(chosen) if turn is not None else None
    continued = torch.stack(continuations, dim=1)
    return ImaginedRollout(
        actions=torch.stack(actions, dim=1),
        logprobs=torch.stack(logprobs, dim=1),
        entropies=torch.stack(entropies, dim=1),
        rewards=torch.stack(rewards, dim=1),
        continuations=continued,
        alive=torch.cat([torch.ones_like(continued[:, :1]), continued[:, :-1]], dim=1).cumprod(dim=1),
        values=torch.stack(values, dim=1),
        in_turn=torch.stack(open_turns, dim=1),
    )


def check_action_conditional(world_model: Dynamics[Any]) -> None:
    """Raise if ``world_model`` cannot answer "what if", as comparing what follows different tokens needs.

    Raises:
        TypeError: it cannot.
    """
    if not world_model.action_conditional:
        raise TypeError(
            f"{type(world_model).__name__} predicts the policy's average future and cannot answer what follows a given "
            "token, as counterfactuals need; use action-conditional heads, such as head='sequential', with world model "
            "'mtp'."
        )


def check_horizon(world_model: WorldModel[Any], horizon: int) -> None:
    """Raise if ``world_model`` cannot be stepped ``horizon`` times.

    Raises:
        ValueError: it cannot go that far.
    """
    if horizon < 1:
        raise ValueError(f"horizon={horizon} must be at least 1.")
    if world_model.max_horizon is not None and horizon > world_model.max_horizon:
        raise ValueError(
            f"horizon={horizon} exceeds the {world_model.max_horizon} steps this model's heads can take "
            f"(depth - 1); lower the horizon or train a model with depth={horizon + 1}."
        )
