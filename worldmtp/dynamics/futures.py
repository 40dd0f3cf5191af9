"""Futures drawn from a world model, with what it said of each token on the way: the samples that marginals are of."""

import torch
from jaxtyping import Float
from torch import Tensor

from worldmtp.dynamics.imagination import Policy, check_action_conditional, check_horizon
from worldmtp.dynamics.protocol import State, WorldModel
from worldmtp.model.categorical import draw


@torch.no_grad()
def future_conditionals(
    world_model: WorldModel[State],
    state: State,
    depth: int,
    num_futures: int,
    policy: Policy,
    generator: torch.Generator,
) -> Float[Tensor, "root depth future symbol"]:
    """Return p(x_{t+k} | prefix, future i) for k = 1 .. depth and i = 1 .. num_futures, one draw of tokens a future.

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
    found = []
    num_roots = len(state)
    state = state.select(torch.arange(num_roots).repeat_interleave(num_futures))
    for ahead in range(depth):
        logits = world_model.predict(state).logits
        assert logits is not None
        log_policy = policy(logits)
        found.append(log_policy.exp())
        if ahead + 1 < depth:
            state = world_model.step(state, draw(log_policy, generator))
    return torch.stack(found, dim=1).unflatten(0, (num_roots, num_futures)).transpose(1, 2)
