"""World models by name, and ``mtp``, the back-end that chains action-conditional heads: (latent, token) -> next latent.

A root is a real prefix ending at position p with the trunk's hidden state h^1_p. After tokens a_1 .. a_j the state is
the depth-(j+1) latent h^{j+1}_p, the very tensor the teacher-forced forward computes when a_1 .. a_j are the real
tokens; a test holds the two equal. What that takes depends on what a depth attends to: nothing (``recurrent.py``), the
same depth at earlier positions (``chained.py``), or its own branch (``branch.py``).

Depth 1 is the root itself, so K depths are K - 1 steps; heads with one recursive step can be applied on and on.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from worldmtp.choices import check_choice
from worldmtp.dynamics.branch import BranchDynamics
from worldmtp.dynamics.chained import ChainedDynamics
from worldmtp.dynamics.latent import HeadDynamics, HeadState, check_depth_left, read_latent
from worldmtp.dynamics.parallel import ParallelWorldModel
from worldmtp.dynamics.placebo import IdentityWorldModel, ShuffledWorldModel
from worldmtp.dynamics.protocol import Prediction, WorldModel, resolve_roots
from worldmtp.dynamics.recurrent import RecurrentDynamics
from worldmtp.dynamics.trunk import OracleWorldModel
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

    action_conditional = True
    models_replies = False

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
        """Return the roots' states, with what the heads need of the real text; see ``WorldModel.encode``."""
        root_rows, root_positions = resolve_roots(attention_mask, root_rows, root_positions)
        if features is None:
            features = self._model.trunk_features(input_ids, attention_mask)
        return self._dynamics.encode(features, input_ids, attention_mask, root_rows, root_positions)

    def step(self, state: HeadState, tokens: Int[Tensor, " state"]) -> HeadState:
        """Return the states at their next depth.

        Raises:
            ValueError: a row has no next depth.
        """
        check_depth_left(state.depths, self.max_horizon)
        return self._dynamics.step(state, tokens)

    def predict(self, state: HeadState, with_logits: bool = True) -> Prediction:
        """Return what is read off the latents, through the output layers of their depths."""
        return read_latent(self._model, state.latent, with_logits, state.depths)


WORLD_MODELS: dict[str, Callable[[MTPModel, torch.Generator], WorldModel[Any]]] = {
    "mtp": lambda model, generator: MTPWorldModel(model),
    "mtp_parallel": lambda model, generator: ParallelWorldModel(model),
    "oracle": lambda model, generator: OracleWorldModel(model),
    "identity": lambda model, generator: IdentityWorldModel(model),
    "shuffled": lambda model, generator: ShuffledWorldModel(MTPWorldModel(model), generator, model.num_tokens),
}
"""Back-ends; the generator serves those that are random by construction."""


def make_world_model(backend: str, model: MTPModel, generator: torch.Generator) -> WorldModel[Any]:
    """Return a world model on ``model`` by the name of its back-end.

    Raises:
        ValueError: no such back-end, or heads whose depths leap over tokens.
        TypeError: the model's heads are of the other kind; the message names the back-end for them.
    """
    check_backend(backend)
    return WORLD_MODELS[backend](model, generator)


def check_backend(backend: str) -> None:
    """Raise if there is no back-end of that name.

    Raises:
        ValueError: there is none; the nearest name is suggested.
    """
    check_choice("world_model.backend", backend, sorted(WORLD_MODELS))
