"""Dynamics of heads without attention (``attention = "none"``): a step is a function of (carry, token) alone.

Nothing of the text is kept but the roots' carries, and a step costs one pointwise pass. A step that all depths share
may be applied beyond the depths it was trained for: it is then the last depth's, again. Rows of different depths go
through such a step together.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.dynamics.latent import HeadState, step_by_depth
from worldmtp.dynamics.states import Depths
from worldmtp.heads.base import ActionConditionalHead
from worldmtp.model import MTPModel
from worldmtp.model.trunk import TrunkFeatures, position_ids_from_attention_mask


@dataclass(frozen=True)
class RecurrentState(HeadState):
    """Branches of real prefixes, with the carry that the next step reads."""

    positions: Int[Tensor, " state"]
    carry: Float[Tensor, "state width"]


class RecurrentDynamics:
    """The ``HeadDynamics`` of recurrent heads."""

    def __init__(self, model: MTPModel, heads: ActionConditionalHead) -> None:
        self._model = model
        self._heads = heads

    def encode(
        self,
        features: TrunkFeatures,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        root_rows: Int[Tensor, " root"],
        root_positions: Int[Tensor, " root"],
    ) -> RecurrentState:
        """Return the roots' carries; the heads read the trunk there only."""
        at_roots = features.map(lambda hidden: hidden[root_rows, root_positions][:, None])
        return RecurrentState(
            latent=at_roots.post_norm[:, 0],
            depths=Depths.at_roots(root_rows),
            positions=position_ids_from_attention_mask(attention_mask)[root_rows, root_positions],
            carry=self._heads.begin(at_roots)[:, 0],
        )

    def step(self, state: RecurrentState, tokens: Int[Tensor, " state"]) -> RecurrentState:
        """Return the states after one pointwise step."""
        return step_by_depth(self._step, state, tokens, lambda depth: self._heads.unbounded or depth)

    def _step(self, state: RecurrentState, tokens: Int[Tensor, " state"], depth: int) -> RecurrentState:
        following = min(depth + 1, self._model.config.depth)
        carry = state.carry[:, : self._heads.carry_width(following - 1)]
        itself = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=tokens.device)
        carry = self._heads.forward_depth(
            following, carry[:, None], self._model.embed(tokens[:, None]), itself, state.positions[:, None]
        )
        assert carry.shape[-1] == self._heads.carry_width(following)
        return replace(
            state,
            latent=self._heads.read(following, carry)[:, 0],
            depths=state.depths.after_step(),
            carry=carry[:, 0],
        )
