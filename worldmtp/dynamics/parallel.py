"""World model back-end ``mtp_parallel``: parallel heads, blind to actions: what comes on average, whatever is done.

Depth k of a parallel head is the policy's own marginal of token p + k, averaged over the tokens in between. So all of a
root's future is known when it is encoded, a step only moves on to the next depth, and ``action_conditional`` is False:
such a model can serve as a state-only expectation, such as a baseline, and never says what another token would have
brought. In a rollout of it the actions are drawn from the marginals, each by itself.

Left out: strides. Heads that leap have no prediction of the tokens in between.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.dynamics.latent import check_depth_left, read_latent
from worldmtp.dynamics.protocol import Prediction, resolve_roots
from worldmtp.dynamics.states import Depths, StateTable
from worldmtp.heads.base import ParallelHead
from worldmtp.model import MTPModel
from worldmtp.model.trunk import TrunkFeatures


@dataclass(frozen=True)
class ParallelState(StateTable):
    """Roots with the latents of all their depths, and the depth that each has come to."""

    latents: Float[Tensor, "state depths hidden"]
    depths: Depths

    @property
    def latent(self) -> Float[Tensor, "state hidden"]:
        """The latent of each row's depth."""
        if len(self.depths.present) == 1:
            return self.latents[:, self.depths.deepest - 1]
        return self.latents[torch.arange(len(self), device=self.latents.device), self.depths.each - 1]


class ParallelWorldModel:
    """World model back-end ``mtp_parallel``.

    Raises:
        TypeError: the heads are chained by tokens.
        ValueError: their depths leap over tokens.
    """

    action_conditional = False
    models_replies = False

    def __init__(self, model: MTPModel) -> None:
        if not isinstance(model.heads, ParallelHead):
            raise TypeError(
                f"head={model.config.head!r} is action-conditional, and 'mtp_parallel' would hide that from it; use "
                "world model 'mtp'."
            )
        if model.config.stride != 1:
            raise ValueError(
                f"stride={model.config.stride}: depth k foresees token t + 1 + {model.config.stride} (k - 1), and a "
                "step of imagination is one token; use heads with stride=1."
            )
        self._model = model

    @property
    def max_horizon(self) -> int | None:
        """Depth 1 is the state itself; each further depth is one step."""
        return self._model.config.depth - 1

    def encode(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        root_rows: Int[Tensor, " root"] | None = None,
        root_positions: Int[Tensor, " root"] | None = None,
        features: TrunkFeatures | None = None,
    ) -> ParallelState:
        """Return the latents of all depths at the roots; see ``WorldModel.encode``."""
        root_rows, root_positions = resolve_roots(attention_mask, root_rows, root_positions)
        # No depth reads a token, so what the text says after a root does not matter.
        latents = self._model.latents(input_ids, attention_mask, features=features)
        at_roots = torch.stack([latent[root_rows, root_positions] for latent in latents], dim=1)
        return ParallelState(at_roots, Depths.at_roots(root_rows))

    def step(self, state: ParallelState, tokens: Int[Tensor, " state"]) -> ParallelState:
        """Return the states at their next depth, whatever the tokens.

        Raises:
            ValueError: a row has no next depth.
        """
        check_depth_left(state.depths, self.max_horizon)
        return replace(state, depths=state.depths.after_step())

    def predict(self, state: ParallelState, with_logits: bool = True) -> Prediction:
        """Return what is read off each depth's latent, through its output layer."""
        return read_latent(self._model, state.latent, with_logits, state.depths)
