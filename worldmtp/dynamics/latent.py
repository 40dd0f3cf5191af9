"""What back-ends that live in the model's hidden space share: reading a latent, and stepping rows by their depth.

A head's depth has weights, an output layer and a window of its own, so a batch is stepped depth by depth where its rows
differ, and in one pass where they do not.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.dynamics.protocol import Prediction
from worldmtp.dynamics.states import Depths, StateTable
from worldmtp.model import MTPModel
from worldmtp.model.precision import full_precision
from worldmtp.model.trunk import TrunkFeatures
from worldmtp.model.world_heads import binned_mean


@dataclass(frozen=True)
class HeadState(StateTable):
    """Branches of real prefixes: the latent of each at its depth; what the next step reads is the subclass's."""

    latent: Float[Tensor, "state hidden"]
    depths: Depths


State = TypeVar("State", bound=HeadState)


class HeadDynamics(Protocol[State]):
    """One way to chain action-conditional heads: the states of real prefixes, and what follows a token."""

    def encode(
        self,
        features: TrunkFeatures,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        root_rows: Int[Tensor, " root"],
        root_positions: Int[Tensor, " root"],
    ) -> State:
        """Return the states of roots in real text, of which ``features`` are the trunk's."""
        ...

    def step(self, state: State, tokens: Int[Tensor, " state"]) -> State:
        """Return the states of the next depth, which the caller has checked to exist."""
        ...


def step_by_depth(
    step: Callable[[State, Int[Tensor, " state"], int], State],
    state: State,
    tokens: Int[Tensor, " state"],
    key: Callable[[int], Hashable] = lambda depth: depth,
) -> State:
    """Return the states after one more token each.

    ``step(state, tokens, depth)`` steps rows of that depth, or of depths with the same ``key``. It reads no more of a
    field than belongs to the depth: behind it there may be padding. It is not called for a batch of no rows.
    """
    if len(state) == 0:  # as where the last branch of a search has ended; attention cannot reshape a batch of none
        return replace(state, depths=state.depths.after_step())
    groups = state.depths.groups(key)
    if len(groups) == 1:
        return step(state, tokens, groups[0][0])
    rows = [group for _, group in groups if group is not None]
    stepped = [step(state.select(group), tokens[group], depth) for (depth, _), group in zip(groups, rows, strict=True)]
    return type(state).cat(stepped).select(torch.cat(rows).argsort())


def read_latent(
    model: MTPModel, latent: Float[Tensor, "state hidden"], with_logits: bool, depths: Depths | None = None
) -> Prediction:
    """Return what ``model`` reads off latents: expectations, not samples.

    Logits come from the output layer of each latent's depth, and from the trunk's LM head where no depths are given.
    """
    world = model.world_heads(latent)
    return Prediction(
        logits=_logits(model, latent, depths) if with_logits else None,
        reward=binned_mean(world.reward_logits, model.world_heads.reward_bins),
        continuation=full_precision(world.continuation_logits).softmax(dim=-1)[..., 1],
        value=binned_mean(world.value_logits, model.world_heads.value_bins),
    )


def _logits(model: MTPModel, latent: Tensor, depths: Depths | None) -> Tensor:
    if depths is None:
        return model.logits_of(latent)

    def known(depth: int) -> int:
        return min(depth, model.config.depth)  # beyond K the last depth goes on

    groups = depths.groups(lambda depth: id(model.output_layer(known(depth))))
    if len(groups) == 1:
        return model.logits_of(latent, known(groups[0][0]))
    rows = torch.cat([group for _, group in groups if group is not None])
    return torch.cat([model.logits_of(latent[group], known(depth)) for depth, group in groups])[rows.argsort()]


def check_depth_left(depths: Depths, max_horizon: int | None) -> None:
    """Raise if a row has taken all the steps that there are.

    Raises:
        ValueError: one has.
    """
    if max_horizon is not None and depths.deepest > max_horizon:
        raise ValueError(
            f"step {depths.deepest} exceeds the {max_horizon} steps these heads can take; "
            f"train a model with depth={depths.deepest + 1}."
        )
