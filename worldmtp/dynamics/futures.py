"""Futures drawn from a world model, with what it said of each token on the way: the samples that marginals are of."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.dynamics.imagination import Policy, check_action_conditional, check_horizon
from worldmtp.dynamics.protocol import State, WorldModel
from worldmtp.model.categorical import draw


@dataclass(frozen=True)
class Futures:
    """Drawn futures of some roots; ``conditionals[:, k-1, i]`` is p(x_{t+k} | prefix, the first k-1 tokens of i)."""

    conditionals: Float[Tensor, "root depth future symbol"]
    tokens: Int[Tensor, "root future between"]


@torch.no_grad()
def draw_futures(
    world_model: WorldModel[State],
    state: State,
    depth: int,
    num_futures: int,
    policy: Policy,
    generator: torch.Generator,
) -> Futures:
    """Draw ``num_futures`` futures of ``depth`` - 1 tokens from each state, with the law of each token and of the next.

    With the back-end ``oracle`` p is the trunk, and the mean over futures is unbiased for what perfect heads that
    average would say (``worldmtp.analysis.loss_split.bracketed_split``). It holds roots x depth x futures x vocabulary
    numbers: meant for some hundred roots of an evaluation.

    Raises:
        TypeError: the world model is blind to the tokens.
        ValueError: ``depth`` is beyond what it can do.
    """
    check_action_conditional(world_model)
    if depth > 1:
        check_horizon(world_model, depth - 1)
    found, drawn = [], []
    num_roots = len(state)
    state = state.select(torch.arange(num_roots).repeat_interleave(num_futures))
    for ahead in range(depth):
        logits = world_model.predict(state).logits
        assert logits is not None
        log_policy = policy(logits)
        found.append(log_policy.exp())
        if ahead + 1 < depth:
            drawn.append(draw(log_policy, generator))
            state = world_model.step(state, drawn[-1])
    shape = (num_roots, num_futures)
    tokens = torch.stack(drawn, dim=1) if drawn else torch.empty(len(state), 0, dtype=torch.long)
    return Futures(torch.stack(found, dim=1).unflatten(0, shape).transpose(1, 2), tokens.unflatten(0, shape))
