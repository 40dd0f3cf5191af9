"""Predicted beside realized: what every depth said of every token that then came, for saving and later analysis.

On-policy text and its teacher-forced heads are all that is needed: one trunk forward and one pass of each depth. The
full distributions are reduced here, one depth at a time; nothing of size vocabulary is kept.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.agents.config import PPOConfig
from worldmtp.agents.forward import discounts_of, lambdas_of, state_index
from worldmtp.agents.imagined_returns import Acting, acted_states
from worldmtp.agents.trajectory import Rollout
from worldmtp.dynamics import WorldModel, imagine
from worldmtp.model import MTPModel
from worldmtp.model.categorical import entropy_per_token
from worldmtp.model.precision import full_precision
from worldmtp.model.trunk import TrunkFeatures
from worldmtp.returns import lambda_returns


@dataclass(frozen=True)
class DepthPredictions:
    """Of token i, what depth k said at position i - k; NaN (ids: 0) where that position is not in the text.

    Depth 1 is the trunk, the policy that wrote the text, so ``logprobs[..., 0]`` is the chain.
    """

    logprobs: Float[Tensor, "batch length depth"]
    entropies: Float[Tensor, "batch length depth"]
    top1_ids: Int[Tensor, "batch length depth"]
    top1_probs: Float[Tensor, "batch length depth"]


@torch.no_grad()
def depth_predictions(
    model: MTPModel, rollout: Rollout, temperature: float, features: TrunkFeatures | None = None
) -> DepthPredictions:
    """Read a rollout with all depths, at the temperature at which it was acted.

    ``features``, the trunk's of this rollout's text, save its forward where they are at hand.
    """
    latents = model.latents(rollout.input_ids, rollout.attention_mask, features=features)
    per_depth = [
        _read_depth(model, latent, rollout, depth, temperature) for depth, latent in enumerate(latents, start=1)
    ]
    logprobs, entropies, ids, probs = zip(*per_depth, strict=True)
    return DepthPredictions(
        torch.stack(logprobs, dim=-1),
        torch.stack(entropies, dim=-1),
        torch.stack(ids, dim=-1),
        torch.stack(probs, dim=-1),
    )


def _read_depth(
    model: MTPModel, latent: Tensor, rollout: Rollout, depth: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    log_policy = (full_precision(model.logits_of(latent, depth)) / temperature).log_softmax(dim=-1)
    realized = rollout.input_ids[:, depth:]
    said = log_policy[:, :-depth]
    top1_probs, top1_ids = said.exp().max(dim=-1)
    known = rollout.attention_mask[:, depth:]

    def placed(values: Tensor, missing: float | int) -> Tensor:
        whole = torch.full_like(rollout.input_ids, missing, dtype=values.dtype)
        whole[:, depth:] = torch.where(known, values, missing)
        return whole

    return (
        placed(said.gather(2, realized[..., None])[..., 0], float("nan")),
        placed(entropy_per_token(said), float("nan")),
        placed(top1_ids, 0),
        placed(top1_probs, float("nan")),
    )


@dataclass(frozen=True)
class RootImaginations:
    """What was imagined at each state acted in, at the last token of its prefix; NaN (ids: 0) elsewhere.

    Imagined and realized return-to-go, and the most likely imagined continuation with its probabilities: NaN from the
    end of the policy's turn on, since what comes then is the environment's.
    """

    imagined: Float[Tensor, "batch length"]
    realized: Float[Tensor, "batch length"]
    tokens: Int[Tensor, "batch length horizon"]
    token_probs: Float[Tensor, "batch length horizon"]


@torch.no_grad()
def root_imaginations(
    world_model: WorldModel[Any] | None,
    acting: Acting,
    rollout: Rollout,
    horizon: int,
    num_rollouts: int,
    ppo: PPOConfig,
    generator: torch.Generator,
    features: TrunkFeatures | None = None,
) -> RootImaginations:
    """Imagine from every state of a rollout: the mean of ``num_rollouts`` expansions T_horizon, and greedily once.

    Without a world model only what was realized is known. ``features``, the trunk's of this rollout's text, save its
    forward where they are at hand.
    """
    rows, steps = torch.nonzero(rollout.step_mask, as_tuple=True)
    at = (rows, state_index(rollout)[rows, steps])
    zeros = torch.zeros_like(rollout.rewards)
    to_go = lambda_returns(rollout.rewards, discounts_of(rollout, ppo), zeros, lambdas_of(rollout, 1.0))

    def placed(values: Tensor, missing: float | int) -> Tensor:
        shape = (*rollout.input_ids.shape, *values.shape[1:])
        whole = torch.full(shape, missing, dtype=values.dtype, device=values.device)
        whole[at] = values
        return whole

    realized = placed(to_go[rows, steps], float("nan"))
    if world_model is None:
        unknown = torch.full_like(realized, float("nan"))
        tokens = rollout.input_ids.new_zeros((*rollout.input_ids.shape, horizon))
        return RootImaginations(unknown, realized, tokens, torch.full_like(tokens, float("nan"), dtype=unknown.dtype))
    root = acted_states(world_model, rollout, features)
    branched = torch.arange(len(rows), device=rows.device).repeat_interleave(num_rollouts)
    turn = acting.room(rollout, rows, steps)
    room = turn.select(branched) if turn is not None else None
    rolled = imagine(world_model, root.select(branched), horizon, acting.policy, generator, room)
    expanded = acting.returns(rolled, ppo.gamma)[:, -1]
    likeliest = imagine(world_model, root, horizon, acting.policy, None, turn)
    return RootImaginations(
        imagined=placed(expanded.view(-1, num_rollouts).mean(dim=1).to(to_go.dtype), float("nan")),
        realized=realized,
        tokens=placed(torch.where(likeliest.in_turn, likeliest.actions, 0), 0),
        token_probs=placed(torch.where(likeliest.in_turn, likeliest.logprobs.exp(), float("nan")), float("nan")),
    )
