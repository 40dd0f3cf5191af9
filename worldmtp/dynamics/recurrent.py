"""Dynamics of heads without attention (``attention = "none"``): a step is a function of (carry, token) alone.

Nothing of the text is kept but the roots' carries, and a step costs one pointwise pass. A step that all depths share
may be applied beyond the depths it was trained for: it is then the last depth's, again.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.heads.base import ActionConditionalHead
from worldmtp.model import MTPModel
from worldmtp.model.trunk import TrunkFeatures, position_ids_from_attention_mask


@dataclass(frozen=True)
class RecurrentState:
    """Branches of real prefixes: what the next step reads, and the latent of it."""

    depth: int
    positions: Int[Tensor, " state"]
    carry: Float[Tensor, "state width"]
    latent: Float[Tensor, "state hidden"]

    def __len__(self) -> int:
        return len(self.carry)

    def select(self, rows: Int[Tensor, " selected"]) -> "RecurrentState":
        """States by row."""
        return replace(self, positions=self.positions[rows], carry=self.carry[rows], latent=self.latent[rows])


class RecurrentDynamics:
    """A ``HeadDynamics``."""

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
        """The heads read the trunk at the roots only."""
        at_roots = features.map(lambda hidden: hidden[root_rows, root_positions][:, None])
        return RecurrentState(
            depth=1,
            positions=position_ids_from_attention_mask(attention_mask)[root_rows, root_positions],
            carry=self._heads.begin(at_roots)[:, 0],
            latent=at_roots.post_norm[:, 0],
        )

    def step(self, state: RecurrentState, actions: Int[Tensor, " state"]) -> RecurrentState:
        """One pointwise step."""
        depth = min(state.depth + 1, self._model.config.depth)
        itself = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=actions.device)
        carry = self._heads.forward_depth(
            depth, state.carry[:, None], self._model.embed(actions[:, None]), itself, state.positions[:, None]
        )
        return replace(state, depth=state.depth + 1, carry=carry[:, 0], latent=self._heads.read(depth, carry)[:, 0])
