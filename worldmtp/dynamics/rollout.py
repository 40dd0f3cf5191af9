"""``imagine()``: the rollout every world model shares, in whatever latent space it has."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worldmtp.draws import draw
from worldmtp.dynamics.protocol import ImaginedRollout, Policy, State, WorldModel


def as_sampled(logits: Float[Tensor, "state vocab"]) -> Float[Tensor, "state vocab"]:
    """The policy itself: temperature one, no mask."""
    return logits.log_softmax(dim=-1)


def imagine(
    world_model: WorldModel[State],
    state: State,
    horizon: int,
    policy: Policy = as_sampled,
    generator: torch.Generator | None = None,
) -> ImaginedRollout:
    """Roll a world model forward ``horizon`` steps; greedy where there is no generator.

    The last state is read without logits: nobody acts there.

    A world model that is blind to actions foresees what comes on average; its actions are drawn each by itself.

    Raises:
        ValueError: ``horizon`` is not positive, or beyond what the dynamics can do.
    """
    check_horizon(world_model, horizon)
    prediction = world_model.predict(state)
    actions, logprobs, entropies, rewards, continuations, values = [], [], [], [], [], [prediction.value]
    for step in range(horizon):
        assert prediction.logits is not None
        log_policy = policy(prediction.logits)
        chosen = draw(log_policy, generator)
        actions.append(chosen)
        logprobs.append(log_policy.gather(1, chosen[:, None])[:, 0])
        entropies.append(torch.special.entr(log_policy.exp()).sum(dim=-1))
        state = world_model.step(state, chosen)
        prediction = world_model.predict(state, with_logits=step + 1 < horizon)
        rewards.append(prediction.reward)
        continuations.append(prediction.continuation)
        values.append(prediction.value)
    continued = torch.stack(continuations, dim=1)
    return ImaginedRollout(
        actions=torch.stack(actions, dim=1),
        logprobs=torch.stack(logprobs, dim=1),
        entropies=torch.stack(entropies, dim=1),
        rewards=torch.stack(rewards, dim=1),
        continuations=continued,
        alive=torch.cat([torch.ones_like(continued[:, :1]), continued[:, :-1]], dim=1).cumprod(dim=1),
        values=torch.stack(values, dim=1),
    )


def check_action_conditional(world_model: WorldModel[Any]) -> None:
    """Whether ``world_model`` can answer "what if"; who compares what follows different tokens must ask.

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
    """Whether ``world_model`` can be stepped ``horizon`` times.

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
