"""The action-conditional MTP heads as latent dynamics: (latent, token) -> next latent.

A root is a real prefix ending at position p with the trunk's hidden state h^1_p. After actions a_1 .. a_j the state is
the depth-(j+1) latent h^{j+1}_p, the very tensor the teacher-forced forward computes when a_1 .. a_j are the real
tokens; a test holds the two equal. What that takes depends on what a depth attends to: nothing (``recurrent.py``), the
same depth at earlier positions (``chained.py``), or its own branch (``branch.py``).

Depth 1 is the root itself, so K depths are K - 1 steps; heads with one recursive step can be applied on and on.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from worldmtp.dynamics.branch import BranchDynamics
from worldmtp.dynamics.chained import ChainedDynamics
from worldmtp.dynamics.head_dynamics import HeadDynamics, HeadState
from worldmtp.dynamics.protocol import Prediction
from worldmtp.dynamics.readout import read_latent
from worldmtp.dynamics.recurrent import RecurrentDynamics
from worldmtp.dynamics.roots import resolve_roots
from worldmtp.heads.base import ActionConditionalHead
from worldmtp.model import MTPModel
from worldmtp.model.trunk import TrunkFeatures

_DYNAMICS: dict[str, Callable[[MTPModel, ActionConditionalHead], HeadDynamics[Any]]] = {
    "none": RecurrentDynamics,
    "depth": ChainedDynamics,
    "branch": BranchDynamics,
}


class MTPWorldModel:
    """World model back-end ``mtp``; gradients are the caller's business (``torch.no_grad`` to imagine).

    Raises:
        TypeError: the heads do not read the token they would be stepped by.
        ValueError: the heads attend in a way that is none of the three.
    """

    def __init__(self, model: MTPModel) -> None:
        heads = model.heads
        if not isinstance(heads, ActionConditionalHead):
            raise TypeError(
                f"head={model.config.head!r} gives the policy-averaged marginal of future tokens, whatever the token "
                "it is stepped by; use action-conditional heads, such as head='sequential', or world model "
                "'mtp_parallel' for action-blind imagination."
            )
        if heads.attention not in _DYNAMICS:
            raise ValueError(
                f"{type(heads).__name__}.attention={heads.attention!r} is unknown; choose from {list(_DYNAMICS)}."
            )
        self._model = model
        self._unbounded = heads.unbounded
        self._dynamics: HeadDynamics[Any] = _DYNAMICS[heads.attention](model, heads)

    @property
    def action_conditional(self) -> bool:
        """These heads read the token they are stepped by."""
        return True

    @property
    def max_horizon(self) -> int | None:
        """Depth 1 is the state itself; each further depth is one step. None where the last step can be repeated."""
        return None if self._unbounded else self._model.config.depth - 1

    def encode(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        root_rows: Int[Tensor, " root"] | None = None,
        root_positions: Int[Tensor, " root"] | None = None,
        features: TrunkFeatures | None = None,
    ) -> HeadState:
        """What the heads need of the real text. See ``WorldModel.encode``."""
        root_rows, root_positions = resolve_roots(attention_mask, root_rows, root_positions)
        if features is None:
            features = self._model.trunk_features(input_ids, attention_mask)
        return self._dynamics.encode(features, input_ids, attention_mask, root_rows, root_positions)

    def step(self, state: HeadState, actions: Int[Tensor, " state"]) -> HeadState:
        """The next depth.

        Raises:
            ValueError: there is none.
        """
        if self.max_horizon is not None and state.depth > self.max_horizon:
            raise ValueError(
                f"step {state.depth} exceeds the {self.max_horizon} steps these heads can take; "
                f"train a model with depth={state.depth + 1}."
            )
        return self._dynamics.step(state, actions)

    def predict(self, state: HeadState, with_logits: bool = True) -> Prediction:
        """Read the latent, through its depth's output layer."""
        return read_latent(self._model, state.latent, with_logits, min(state.depth, self._model.config.depth))
