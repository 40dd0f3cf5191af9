"""What the critic is fed: surprisals of the real forward, then what the world model imagines after each live token.

Three rungs, each containing the one below. Rung 0 costs nothing: the log-probability of *every* alternative is already
in the logits of the real forward. Rung 1 steps the world model by the candidate and lets it go on greedily; rung 2 adds
the imagined latents themselves. Whether a rung is worth its cost is decided by held-out r2 (critic.py), not here.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worldmtp.agents.counterfactual import LiveTokens
from worldmtp.agents.imagined_returns import Acting, border_fraction
from worldmtp.agents.trajectory import Rollout
from worldmtp.dynamics import ImaginedRollout, LatentState, WorldModel, check_action_conditional, imagine
from worldmtp.model.categorical import entropy_per_token

NUM_SURPRISALS = 6


@dataclass(frozen=True)
class ImaginedFeatures:
    """Features of candidates, flattened over (batch, time, live) where the live mask is true."""

    readings: Float[Tensor, "candidate readings"]
    latents: Float[Tensor, "candidate hidden"]
    num_steps: int
    """Imagined steps paid for."""
    border_fraction: float
    """Share of the candidates behind which the policy's turn was over before the horizon."""


def surprisal_features(
    log_policy: Float[Tensor, "batch time vocab"], live: LiveTokens, rollout: Rollout
) -> Float[Tensor, "batch time live features"]:
    """Log pi of the candidate; cumulative and least log pi so far, candidate included; entropy; progress; likeliest?

    The past enters through the actions really taken before t, so a feature of (s_t, a) never looks at a_t or later.
    """
    taken = torch.where(rollout.step_mask, rollout.logprobs, 0.0)
    zeros = torch.zeros_like(taken[:, :1])
    before = torch.cat([zeros, taken.cumsum(dim=1)[:, :-1]], dim=1)  # no subtraction: its rounding would look at a_t
    least = torch.cat([zeros, taken.cummin(dim=1).values[:, :-1]], dim=1)
    entropy = entropy_per_token(log_policy)
    steps = rollout.actions.shape[1]
    progress = torch.arange(steps, dtype=taken.dtype, device=taken.device) / steps
    candidate = live.logprobs.clamp_min(-20.0)
    shape = candidate.shape
    return torch.stack(
        [
            candidate,
            before[..., None] + candidate,
            torch.minimum(least[..., None], candidate),
            entropy[..., None].expand(shape),
            progress[None, :, None].expand(shape),
            (torch.arange(shape[-1], device=taken.device) == 0).to(taken.dtype).expand(shape),
        ],
        dim=-1,
    )


@torch.no_grad()
def imagined_features(
    world_model: WorldModel[Any],
    acting: Acting,
    rollout: Rollout,
    states: LatentState,
    live: LiveTokens,
    horizon: int,
    chunk_states: int,
) -> ImaginedFeatures:
    """Step by each live token, then greedily on to ``horizon``; what is read at every imagined state.

    Where the candidate or a later token ends the policy's turn, imagination stands still: what follows is a reply.
    ``states`` are the rollout's ``acted_states``.

    Raises:
        TypeError: the world model is blind to actions.
    """
    check_action_conditional(world_model)
    rows, steps, _ = torch.nonzero(live.mask, as_tuple=True)
    candidates = live.ids[live.mask]
    number = rollout.step_mask.flatten().cumsum(dim=0).view_as(rollout.step_mask) - 1
    root = number[rows, steps]
    turn = acting.room(rollout, rows, steps)
    readings, latents, onwards = [], [], []
    for chunk in torch.arange(len(rows), device=rows.device).split(chunk_states):
        state = world_model.step(states.select(root[chunk]), candidates[chunk])
        room = turn.select(chunk).after(candidates[chunk]) if turn is not None else None
        if horizon > 1:
            onwards.append(imagine(world_model, state, horizon - 1, acting.policy, None, room))
        readings.append(_readings(world_model, state, onwards[-1] if onwards else None))
        latents.append(state.latent)
    return ImaginedFeatures(
        torch.cat(readings),
        torch.cat(latents),
        num_steps=len(rows) * horizon,
        border_fraction=border_fraction(onwards) if onwards else 0.0,
    )


def _readings(world_model: WorldModel[Any], state: LatentState, onwards: ImaginedRollout | None) -> Tensor:
    """Reward, continuation and value on arrival; then of each greedy step log-prob, entropy and what it arrives at."""
    arrived = world_model.predict(state, with_logits=False)
    columns = [arrived.reward, arrived.continuation, arrived.value]
    if onwards is not None:
        carried = arrived.continuation[:, None] * onwards.alive
        collected = arrived.reward + (carried * onwards.rewards).sum(dim=1)
        columns += [
            *(carried * onwards.logprobs.clamp_min(-20.0)).unbind(dim=1),
            *(carried * onwards.entropies).unbind(dim=1),
            *(carried * onwards.values[:, 1:]).unbind(dim=1),
            collected,
        ]
    return torch.stack(columns, dim=-1)


def num_readings(horizon: int) -> int:
    """Columns of rung 1."""
    return 3 if horizon == 1 else 3 + 3 * (horizon - 1) + 1
