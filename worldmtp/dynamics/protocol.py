"""What a world model of text answers: three verbs and three facts, the same for every back-end.

A state is a prefix; ``step`` appends a token. ``predict`` reads a state: the policy's next-token logits there, and, of
the transition that *arrived* in it, the reward and the probability that the episode went on, and the value from there
on. So the reward of token a in s is ``predict(step(encode(s), a)).reward``.

States come in batches, and the rows of a batch are independent: they can be selected, stored and merged, and may have
taken different numbers of steps. What a row is stepped to and read as does not depend on the rows beside it, but for
the placebo that mixes them up.

Parallel heads give the policy-averaged marginal of token t+k and cannot be stepped by a token; callers that ask "what
if" must check ``action_conditional``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.model.trunk import TrunkFeatures

_Same = TypeVar("_Same")


@runtime_checkable
class LatentState(Protocol):
    """A batch of states inside a world model; only the model that made it can read it.

    A dataclass of tensors gets all but ``latent`` from ``worldmtp.dynamics.states.StateTable``.
    """

    @property
    def latent(self) -> Float[Tensor, "state hidden"]:
        """The states as vectors."""
        ...

    def __len__(self) -> int:
        """Return the number of states in the batch."""
        ...

    def select(self: _Same, rows: Int[Tensor, " selected"]) -> _Same:
        """Return states by row, repeats allowed: ``state.select(rows.repeat_interleave(n))`` branches each n-fold."""
        ...

    def put(self: _Same, rows: Int[Tensor, " other"], other: _Same) -> _Same:
        """Return this batch with the states of ``other`` in place of ``rows``, which are all different."""
        ...

    @classmethod
    def cat(cls: type[_Same], tables: Sequence[_Same]) -> _Same:
        """Return one batch of all states, whatever texts they come from and however many steps they have taken."""
        ...


@runtime_checkable
class StorableState(LatentState, Protocol):
    """States that a search can keep in a table written in place."""

    def reserve(self: _Same, num_rows: int) -> _Same:
        """Return a batch with room for so many states that begins with a copy of these, for ``store`` to fill."""
        ...

    def store(self: _Same, start: int, other: _Same) -> _Same:
        """Write states over the rows from ``start`` on, in place where they fit, and return the batch to go on with."""
        ...

    @property
    def row_bytes(self) -> int:
        """The memory that a state takes, without what it shares with others."""
        ...


State = TypeVar("State", bound=LatentState)


@dataclass(frozen=True)
class Prediction:
    """What a world model says of a batch of states. ``logits`` is None where it was not asked for."""

    logits: Float[Tensor, "state vocab"] | None
    reward: Float[Tensor, " state"]
    continuation: Float[Tensor, " state"]
    value: Float[Tensor, " state"]


@runtime_checkable
class Dynamics(Protocol[State]):
    """What a search needs of a world model once it has a state: two of the verbs, and the facts."""

    @property
    def action_conditional(self) -> bool:
        """Whether ``step`` depends on the token."""
        ...

    @property
    def max_horizon(self) -> int | None:
        """Steps it can take from an encoded state; None is no limit."""
        ...

    @property
    def models_replies(self) -> bool:
        """Whether it knows what an environment replies; without, imagination ends where the policy's turn does."""
        ...

    def step(self, state: State, tokens: Int[Tensor, " state"]) -> State:
        """Return the states after one more token each."""
        ...

    def predict(self, state: State, with_logits: bool = True) -> Prediction:
        """Read the states; without logits the unembedding is not paid for."""
        ...


@runtime_checkable
class WorldModel(Dynamics[State], Protocol[State]):
    """Encode, step, predict; and what can be asked of them."""

    def encode(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        root_rows: Int[Tensor, " root"] | None = None,
        root_positions: Int[Tensor, " root"] | None = None,
        features: TrunkFeatures | None = None,
    ) -> State:
        """Return states at chosen prefixes: root n is ``input_ids[root_rows[n], :root_positions[n] + 1]``.

        Without roots: the whole of each row. One pass over the batch serves all roots. ``features``, the trunk's of
        this very text by the weights it has now, save its forward where they are at hand; a back-end that keeps
        more of the trunk than its hidden states, or has none, does without them.
        """
        ...


def resolve_roots(
    attention_mask: Bool[Tensor, "batch length"],
    root_rows: Int[Tensor, " root"] | None,
    root_positions: Int[Tensor, " root"] | None,
) -> tuple[Int[Tensor, " root"], Int[Tensor, " root"]]:
    """Return the roots asked for, or the last real token of each row, whichever side the padding is on.

    Raises:
        ValueError: rows without positions, or positions without rows.
    """
    if (root_rows is None) != (root_positions is None):
        raise ValueError("root_rows and root_positions go together; give both, or neither for the whole of each row.")
    if root_rows is not None and root_positions is not None:
        return root_rows, root_positions
    num_rows, length = attention_mask.shape
    index = torch.arange(length, device=attention_mask.device)
    return torch.arange(num_rows, device=index.device), torch.where(attention_mask, index, -1).amax(dim=1)
