"""A world model whose texts end: with EOS, with the room that is left, or with the policy's turn of a conversation.

``TurnWorldModel`` says of such an end what is known of it without asking: nothing is searched below.

* Where the episode ends, what is paid on arrival is all there is.
* Where a conversation's turn ends, the world replies, which no back-end of latents foresees. The world model's own
  value of the text that ends with the turn stands for the rest, as in ``imagine``: it is folded into what is paid on
  arrival, r + gamma c V, and the node is an end like any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.dynamics.protocol import Prediction, WorldModel
from worldmtp.dynamics.states import StateTable
from worldmtp.model.trunk import TrunkFeatures

_NO_LIMIT = 2**62


@dataclass(frozen=True)
class TurnState(StateTable):
    """States of the world model inside, and how many tokens the policy may still write: 0 at an end."""

    room: Int[Tensor, " state"]
    inner: Any

    @property
    def latent(self) -> Float[Tensor, "state hidden"]:
        """Those of the states inside."""
        latent: Tensor = self.inner.latent
        return latent


class TurnWorldModel:
    """The world model inside, up to the end of the policy's turn, or of its text where ``ends_episode``."""

    def __init__(self, inner: WorldModel[Any], eos_ids: Sequence[int], ends_episode: bool, gamma: float = 1.0) -> None:
        self._inner = inner
        self._eos_ids = tuple(eos_ids)
        self._ends_episode = ends_episode
        self._gamma = gamma

    @property
    def action_conditional(self) -> bool:
        """Whether the world model inside depends on the token."""
        return self._inner.action_conditional

    @property
    def max_horizon(self) -> int | None:
        """The steps that the world model inside can take."""
        return self._inner.max_horizon

    @property
    def models_replies(self) -> bool:
        """Whether replies are known: none is asked for."""
        return False

    def encode(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        root_rows: Int[Tensor, " root"] | None = None,
        root_positions: Int[Tensor, " root"] | None = None,
        features: TrunkFeatures | None = None,
    ) -> TurnState:
        """Return states that EOS alone ends; see ``WorldModel.encode``, and ``limited``."""
        inner = self._inner.encode(input_ids, attention_mask, root_rows, root_positions, features)
        return TurnState(torch.full((len(inner),), _NO_LIMIT, device=input_ids.device), inner)

    @staticmethod
    def limited(state: TurnState, room: Int[Tensor, " state"]) -> TurnState:
        """Return the states with so many tokens for the policy to write.

        Raises:
            ValueError: there is no room in some row, where nothing can be planned.
        """
        if bool((room < 1).any()):
            raise ValueError(f"room has {int(room.min())}; a turn that is over has no token to search for.")
        return TurnState(room, state.inner)

    def step(self, state: TurnState, tokens: Int[Tensor, " state"]) -> TurnState:
        """Return the states after one more token each, which EOS leaves without room."""
        ends = torch.isin(tokens, tokens.new_tensor(self._eos_ids))
        return TurnState(torch.where(ends, 0, state.room - 1), self._inner.step(state.inner, tokens))

    def predict(self, state: TurnState, with_logits: bool = True) -> Prediction:
        """Return what the world model inside says, and of an end what is known of it."""
        return self._known(self._inner.predict(state.inner, with_logits), state.room < 1)

    def at_ends(self, said: Prediction, tokens: Int[Tensor, " state"], room: Int[Tensor, " state"]) -> Prediction:
        """Return what another world model says after these tokens, and of ends what is known.

        ``room`` is how many tokens the policy may write behind each.
        """
        return self._known(said, torch.isin(tokens, tokens.new_tensor(self._eos_ids)) | (room < 1))

    def _known(self, said: Prediction, is_over: Bool[Tensor, " state"]) -> Prediction:
        rest = 0.0 if self._ends_episode else self._gamma * said.continuation * said.value
        return Prediction(
            logits=said.logits,
            reward=torch.where(is_over, said.reward + rest, said.reward),
            continuation=torch.where(is_over, 0.0, said.continuation),
            value=torch.where(is_over, 0.0, said.value),
        )
