"""The return a world model imagines at the start of an episode, to be laid beside the one that was realized."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worldmtp.agents.forward import state_index
from worldmtp.dynamics.protocol import WorldModel
from worldmtp.dynamics.rollout import as_sampled
from worldmtp.returns import value_expansion
from worldmtp.trajectory import Rollout


def imagined_root_returns(
    world_model: WorldModel[Any], rollout: Rollout, horizon: int, gamma: float, generator: torch.Generator
) -> Float[Tensor, " batch"]:
    """T_horizon at s_0 of every episode: imagined rewards, then the value of where imagination stops."""
    rows = torch.arange(len(rollout), device=rollout.input_ids.device)
    root = world_model.encode(rollout.input_ids, rollout.attention_mask, rows, state_index(rollout)[:, 0])
    imagined = world_model.imagine(root, horizon, as_sampled, generator)
    return value_expansion(imagined.rewards, gamma * imagined.continuations, imagined.values)[:, -1]
