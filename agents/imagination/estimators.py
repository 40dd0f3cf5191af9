"""The advantage estimator that ``imagination.use`` names, its random streams, and how far it sees from the first state.

The agent's trainer and ``BatchImagination``, for trainers that sample by themselves, both begin here.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worldmtp.agents.advantages import (
    AdvantageEstimator,
    PlainAdvantages,
    correlation,
    monte_carlo_returns,
    return_ceiling,
)
from worldmtp.agents.config import ImaginationConfig, PPOConfig
from worldmtp.agents.imagination.baseline import ExpansionAdvantages
from worldmtp.agents.imagination.completions import ScoredCompletions
from worldmtp.agents.imagination.counterfactual import CounterfactualAdvantages
from worldmtp.agents.imagination.imagined_returns import Acting, imagined_root_returns
from worldmtp.agents.imagination.search import SearchAdvantages
from worldmtp.agents.imagination.searched_world import ThroughReplies, WithinTurn
from worldmtp.agents.rollout import Rollout
from worldmtp.dynamics import LatentState, WorldModel
from worldmtp.model import MTPModel

_STREAMS = ("acting", "update", "world_model", "imagination", "placebo")


def random_streams(seed: int) -> dict[str, torch.Generator]:
    """Return a generator for each purpose: one may be consumed or not without moving a draw of another."""
    sequence = torch.Generator().manual_seed(seed)
    return {name: torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=sequence))) for name in _STREAMS}


def make_estimator(
    model: MTPModel,
    world_model: WorldModel[Any] | None,
    acting: Acting,
    imagination: ImaginationConfig,
    ppo: PPOConfig,
    generator: torch.Generator,
    completions: ScoredCompletions | None,
    eos_id: int,
    replies: ThroughReplies | None = None,
) -> AdvantageEstimator:
    """Return the advantage estimator that ``imagination.use`` names; plain ones need no world model.

    ``replies`` is what a search goes on through, where ``imagination.searches_replies``.
    """
    if replies is not None:
        return SearchAdvantages(replies, acting.return_range, imagination, ppo, generator)
    if world_model is None or imagination.use == "latent":
        return PlainAdvantages(ppo)
    if imagination.use == "search":
        within = WithinTurn(world_model, acting, eos_id, imagination.horizon, ppo.gamma)
        return SearchAdvantages(within, acting.return_range, imagination, ppo, generator)
    if imagination.use == "counterfactual":
        hidden_size = model.config.hidden_size
        assert hidden_size is not None  # a config bound to a trunk has it
        dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
        return CounterfactualAdvantages(
            world_model, acting, hidden_size, imagination, ppo, generator, model.device, dtype, completions
        )
    return ExpansionAdvantages(world_model, acting, imagination, ppo, generator)


def root_agreement(
    world_model: WorldModel[Any],
    acting: Acting,
    rollout: Rollout,
    states: LatentState,
    values: Float[Tensor, "batch step_plus_1"],
    horizon: int,
    ppo: PPOConfig,
    generator: torch.Generator,
) -> dict[str, float]:
    """Return what the world model imagines at each episode's first state, beside what the episode brought.

    ``values`` are the critic's, ``states`` the rollout's ``acted_states``.
    """
    imagined = imagined_root_returns(world_model, acting, rollout, states, horizon, ppo.gamma, generator)
    realized = monte_carlo_returns(rollout, ppo, values)[:, 0]
    return {
        "imagination/return_imagined": float(imagined.mean()),
        "imagination/return_realized": float(realized.mean()),
        "imagination/return_bias": float((imagined - realized).mean()),
        "imagination/return_corr": correlation(imagined, realized),
        **return_ceiling(realized, rollout.group),
    }
