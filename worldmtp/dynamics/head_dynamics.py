"""What the ways of chaining heads have in common: states that know their depth, and the two verbs that make them.

One file for each way: ``recurrent.py``, ``chained.py``, ``branch.py``. ``mtp.py`` chooses, and does the rest.
"""

from typing import Protocol, TypeVar, runtime_checkable

from jaxtyping import Bool, Int
from torch import Tensor

from worldmtp.dynamics.protocol import LatentState
from worldmtp.model.trunk import TrunkFeatures


@runtime_checkable
class HeadState(LatentState, Protocol):
    """States of one depth: 1 at the root, one more for each action since."""

    @property
    def depth(self) -> int:
        """Which depth's latents these are."""
        ...


State = TypeVar("State", bound=HeadState)


class HeadDynamics(Protocol[State]):
    """States of real prefixes, and what follows an action."""

    def encode(
        self,
        features: TrunkFeatures,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        root_rows: Int[Tensor, " root"],
        root_positions: Int[Tensor, " root"],
    ) -> State:
        """What the heads make of real text, of which ``features`` are the trunk's."""
        ...

    def step(self, state: State, actions: Int[Tensor, " state"]) -> State:
        """The next depth; the caller has seen that there is one."""
        ...
