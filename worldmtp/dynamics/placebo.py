"""Dynamics that cannot help: whatever an agent gains with them is not due to its world model.

``identity`` never moves (h^ = h), ``shuffled`` moves by an action that is not the state's own. Both keep the interface
and the cost of the real thing.
"""

from dataclasses import dataclass
from typing import Generic

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.dynamics.latent import read_latent
from worldmtp.dynamics.protocol import Prediction, State, WorldModel, resolve_roots
from worldmtp.dynamics.states import StateTable
from worldmtp.model import MTPModel
from worldmtp.model.trunk import TrunkFeatures


@dataclass(frozen=True)
class FrozenState(StateTable):
    """A root's own hidden state."""

    latent: Float[Tensor, "state hidden"]


class IdentityWorldModel:
    """World model back-end ``identity``: the next latent is the last one, whatever the action."""

    action_conditional = True
    max_horizon: int | None = None
    models_replies = False

    def __init__(self, model: MTPModel) -> None:
        self._model = model

    def encode(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        root_rows: Int[Tensor, " root"] | None = None,
        root_positions: Int[Tensor, " root"] | None = None,
        features: TrunkFeatures | None = None,
    ) -> FrozenState:
        """Return the trunk's hidden states at the roots; see ``WorldModel.encode``."""
        root_rows, root_positions = resolve_roots(attention_mask, root_rows, root_positions)
        if features is None:
            features = self._model.trunk_features(input_ids, attention_mask)
        return FrozenState(features.post_norm[root_rows, root_positions])

    def step(self, state: FrozenState, tokens: Int[Tensor, " state"]) -> FrozenState:
        """Return the states as they are."""
        return state

    def predict(self, state: FrozenState, with_logits: bool = True) -> Prediction:
        """Return what is read off the roots' latents."""
        return read_latent(self._model, state.latent, with_logits)


class ShuffledWorldModel(Generic[State]):
    """World model back-end ``shuffled``: no state is stepped by its own action.

    See ``other_actions``. Rows with equal actions do not exchange them, since that would be the real step.

    Raises:
        ValueError: a vocabulary of fewer than two tokens, which has no other action.
    """

    def __init__(self, inner: WorldModel[State], generator: torch.Generator, vocab_size: int) -> None:
        if vocab_size < 2:
            raise ValueError(f"vocab_size={vocab_size} has no other action to shuffle in; it must be at least 2.")
        self._inner = inner
        self._generator = generator
        self._vocab_size = vocab_size

    @property
    def action_conditional(self) -> bool:
        """Whether the dynamics inside depend on the token; they are only given the wrong one."""
        return self._inner.action_conditional

    @property
    def max_horizon(self) -> int | None:
        """The steps that the dynamics inside can take."""
        return self._inner.max_horizon

    @property
    def models_replies(self) -> bool:
        """Whether the dynamics inside know what an environment replies."""
        return self._inner.models_replies

    def encode(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        root_rows: Int[Tensor, " root"] | None = None,
        root_positions: Int[Tensor, " root"] | None = None,
        features: TrunkFeatures | None = None,
    ) -> State:
        """Return the states of the dynamics inside."""
        return self._inner.encode(input_ids, attention_mask, root_rows, root_positions, features)

    def step(self, state: State, tokens: Int[Tensor, " state"]) -> State:
        """Return the states after a token each that is not their own."""
        return self._inner.step(state, other_actions(tokens, self._vocab_size, self._generator))

    def predict(self, state: State, with_logits: bool = True) -> Prediction:
        """Return what the dynamics inside say."""
        return self._inner.predict(state, with_logits)


def other_actions(actions: Int[Tensor, " state"], vocab_size: int, generator: torch.Generator) -> Int[Tensor, " state"]:
    """Give every row an action that differs from its own: those of the batch, permuted at random, where that can be.

    Rows are put in random order, equal actions side by side, and turned by at least the largest number of equal ones,
    so that none meets its like. Where more than half of the rows share an action no permutation changes them all; those
    that would keep theirs get another token, uniform over the rest of the vocabulary.
    """
    device = generator.device
    own = actions.to(device)
    size = len(own)
    # Actions in a random order of their ids, and rows of one action in random order.
    rank = torch.randperm(vocab_size, generator=generator, device=device)[own]
    order = torch.randperm(size, generator=generator, device=device)
    order = order[rank[order].argsort(stable=True)]
    largest = int(torch.bincount(rank, minlength=1).max())
    latest = max(largest, size - largest)
    shift = int(torch.randint(largest, latest + 1, (), generator=generator, device=device))
    given = torch.empty_like(own)
    given[order] = own[order.roll(-shift)]
    offset = torch.randint(1, vocab_size, (size,), generator=generator, device=device)
    return torch.where(given == own, (own + offset) % vocab_size, given).to(actions.device)
