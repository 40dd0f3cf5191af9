"""Dynamics that cannot help: whatever an agent gains with them is not due to its world model.

``identity`` never moves (h^ = h), ``shuffled`` moves by somebody else's action. Both keep the interface, the cost and
the statistics of the real thing.
"""

from dataclasses import dataclass, replace
from typing import Generic

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.dynamics.protocol import Prediction, State, WorldModel
from worldmtp.dynamics.readout import read_latent
from worldmtp.dynamics.roots import resolve_roots
from worldmtp.model import MTPModel
from worldmtp.targets import position_ids_from_attention_mask


@dataclass(frozen=True)
class FrozenState:
    """A root's own hidden state."""

    latent: Float[Tensor, "state hidden"]

    def __len__(self) -> int:
        return len(self.latent)

    def select(self, rows: Int[Tensor, " selected"]) -> "FrozenState":
        """States by row."""
        return replace(self, latent=self.latent[rows])


class IdentityWorldModel:
    """World model back-end ``identity``: the next latent is the last one, whatever the action."""

    action_conditional = True

    def __init__(self, model: MTPModel) -> None:
        self._model = model

    @property
    def max_horizon(self) -> int | None:
        """Standing still has no limit."""
        return None

    def encode(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        root_rows: Int[Tensor, " root"] | None = None,
        root_positions: Int[Tensor, " root"] | None = None,
    ) -> FrozenState:
        """One trunk forward."""
        root_rows, root_positions = resolve_roots(attention_mask, root_rows, root_positions)
        hidden = self._model.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask.long(),
            position_ids=position_ids_from_attention_mask(attention_mask),
            use_cache=False,
        ).last_hidden_state
        return FrozenState(hidden[root_rows, root_positions])

    def step(self, state: FrozenState, actions: Int[Tensor, " state"]) -> FrozenState:
        """Nothing moves."""
        return state

    def predict(self, state: FrozenState, with_logits: bool = True) -> Prediction:
        """Read the root's latent."""
        return read_latent(self._model, state.latent, with_logits)


class ShuffledWorldModel(Generic[State]):
    """World model back-end ``shuffled``: every state is stepped by the action of another row of the batch."""

    def __init__(self, inner: WorldModel[State], generator: torch.Generator) -> None:
        self._inner = inner
        self._generator = generator

    @property
    def action_conditional(self) -> bool:
        """It takes actions; it only takes the wrong ones."""
        return self._inner.action_conditional

    @property
    def max_horizon(self) -> int | None:
        """That of the dynamics inside."""
        return self._inner.max_horizon

    def encode(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        root_rows: Int[Tensor, " root"] | None = None,
        root_positions: Int[Tensor, " root"] | None = None,
    ) -> State:
        """As the dynamics inside."""
        return self._inner.encode(input_ids, attention_mask, root_rows, root_positions)

    def step(self, state: State, actions: Int[Tensor, " state"]) -> State:
        """Step by permuted actions."""
        permutation = torch.randperm(len(actions), generator=self._generator, device=self._generator.device)
        return self._inner.step(state, actions[permutation.to(actions.device)])

    def predict(self, state: State, with_logits: bool = True) -> Prediction:
        """As the dynamics inside."""
        return self._inner.predict(state, with_logits)
