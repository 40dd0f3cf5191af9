"""The policy that is imagined to act, and the returns that are imagined from the states of a rollout.

World models do not know what an environment replies. In a conversation the policy's turn ends with EOS or after
``max_turn`` tokens, so imagination stops there, and the value of the text that ends with the turn stands for what
follows the reply. That is a function of the state alone, whatever tokens were imagined, so a baseline made of it stays
unbiased. Left out: replies as a world model of the environment would write them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.agents.rollout import Rollout, state_index
from worldmtp.dynamics import ImaginedRollout, LatentState, Policy, TurnRoom, WorldModel, acting_policy, imagine
from worldmtp.envs import TextVectorEnv
from worldmtp.model.trunk import TrunkFeatures
from worldmtp.returns import value_expansion

_NO_LIMIT = 2**31


@dataclass(frozen=True)
class Turns:
    """The rules that end the policy's turn of a conversation: ``eos_id``, or ``max_turn`` tokens (None: no limit).

    The rules of ``worldmtp.envs``; a turn begins where the last one ended.
    """

    eos_id: int
    max_turn: int | None = None

    def room(self, rollout: Rollout) -> Int[Tensor, "batch step"]:
        """Return how many tokens the turn of s_t may still take.

        Raises:
            ValueError: the environment wrote text where these rules say that the policy's turn went on.
        """
        limit = _NO_LIMIT if self.max_turn is None else self.max_turn
        room = torch.empty_like(rollout.actions)
        left = torch.full_like(rollout.actions[:, 0], limit)
        for t in range(rollout.actions.shape[1]):
            room[:, t] = left
            left = torch.where((rollout.actions[:, t] == self.eos_id) | (left == 1), limit, left - 1)
        gap = rollout.action_index[:, 1:] > rollout.action_index[:, :-1] + 1
        interrupted = gap & rollout.step_mask[:, 1:] & (room[:, 1:] < limit)
        if bool(interrupted.any()):
            raise ValueError(
                f"the environment replied in the middle of {int(interrupted.sum())} turns: its turns do not end with "
                f"token {self.eos_id} or after max_turn={self.max_turn} tokens, so nobody can tell where imagination "
                "has to stop; use imagination=off with it."
            )
        return room


@dataclass(frozen=True)
class Acting:
    """The policy that acts, and its turns where there are any: what is imagined is what would be acted.

    ``return_range`` is that of the model's values; no imagined return leaves it.
    """

    policy: Policy
    return_range: tuple[float, float]
    turns: Turns | None = None

    @classmethod
    def of(cls, env: TextVectorEnv, temperature: float, return_range: tuple[float, float]) -> "Acting":
        """Return the acting of ``env`` at ``temperature``. Where EOS ends the text, no turn has another after it."""
        turns = None if env.eos_terminates else Turns(env.tokenizer.eos_id, env.dataset.max_turn)
        return cls(acting_policy(temperature), return_range, turns)

    def room(self, rollout: Rollout, rows: Int[Tensor, " root"], steps: Int[Tensor, " root"]) -> TurnRoom | None:
        """Return the room of the turns in the states (row, step) of a rollout; None where there are no turns."""
        if self.turns is None:
            return None
        return TurnRoom(self.turns.eos_id, self.turns.room(rollout)[rows, steps])

    def returns(self, imagined: ImaginedRollout, gamma: float) -> Float[Tensor, "root horizon_plus_1"]:
        """Return the value expansions T_0 .. T_H of imagined rollouts, clamped to ``return_range``.

        Where the turn ends after h steps, T_h is the last expansion there is, and the longer ones repeat it.
        """
        discounts = torch.where(imagined.in_turn, gamma * imagined.continuations, 1.0)
        return value_expansion(imagined.rewards, discounts, imagined.values).clamp(*self.return_range)


def acted_states(world_model: WorldModel[Any], rollout: Rollout, features: TrunkFeatures | None = None) -> LatentState:
    """Return the states that a rollout acted in, one per True of ``step_mask`` in its order, from one pass.

    They are those of the weights of now: whoever shares them among several uses lets none of these train.
    """
    rows, steps = torch.nonzero(rollout.step_mask, as_tuple=True)
    positions = state_index(rollout)[rows, steps]
    return world_model.encode(rollout.input_ids, rollout.attention_mask, rows, positions, features)


def imagined_root_returns(
    world_model: WorldModel[Any],
    acting: Acting,
    rollout: Rollout,
    states: LatentState,
    horizon: int,
    gamma: float,
    generator: torch.Generator,
) -> Float[Tensor, " batch"]:
    """Return T_horizon at s_0 of every episode: imagined rewards, then the value of where imagination stops.

    ``states`` are the rollout's ``acted_states``.
    """
    rows, steps = torch.nonzero(rollout.step_mask, as_tuple=True)
    first = torch.nonzero(steps == 0)[:, 0]
    root = states.select(first)
    turn = acting.room(rollout, rows[first], steps[first])
    return acting.returns(imagine(world_model, root, horizon, acting.policy, generator, turn), gamma)[:, -1]


def border_fraction(imagined: list[ImaginedRollout]) -> float:
    """Return the share of rollouts that stopped short of their horizon because the policy's turn was over."""
    stopped = torch.cat([~rollout.in_turn[:, -1] for rollout in imagined])
    return float(stopped.float().mean())
