"""What a world model of text answers: three verbs, the same for every back-end; ``imagine`` rolls any of them out.

A state is a prefix; ``step`` appends a token. ``predict`` reads a state: the policy's next-token logits there, and, of
the transition that *arrived* in it, the reward and the probability that the episode went on, and the value from there
on. So the reward of action a in s is ``predict(step(encode(s), a)).reward``.

Parallel heads give the policy-averaged marginal of token t+k and cannot be stepped by an action;
``action_conditional`` tells, and who needs "what if" must check it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.model.trunk import TrunkFeatures

_Same = TypeVar("_Same")

Policy = Callable[[Float[Tensor, "state vocab"]], Float[Tensor, "state vocab"]]
"""Logits to the log-probabilities that actions are drawn from (temperature, masks): the policy that acts."""


@runtime_checkable
class LatentState(Protocol):
    """A batch of states inside a world model; only the model that made it can read it."""

    @property
    def latent(self) -> Float[Tensor, "state hidden"]:
        """The states as vectors."""
        ...

    def __len__(self) -> int:
        """States in the batch."""
        ...

    def select(self: _Same, rows: Int[Tensor, " selected"]) -> _Same:
        """States by row, repeats allowed: branching is ``state.select(rows.repeat_interleave(num_branches))``."""
        ...


State = TypeVar("State", bound=LatentState)


@dataclass(frozen=True)
class Prediction:
    """What a world model says of a batch of states. ``logits`` is None where it was not asked for."""

    logits: Float[Tensor, "state vocab"] | None
    reward: Float[Tensor, " state"]
    continuation: Float[Tensor, " state"]
    value: Float[Tensor, " state"]


@dataclass(frozen=True)
class TurnRoom:
    """How long the policy's turn goes on in a conversation, for each state of a batch.

    A turn is over with ``eos_id``, or when ``room``, the tokens that the policy may still write, is used up.
    """

    eos_id: int
    room: Int[Tensor, " state"]

    def select(self, rows: Int[Tensor, " selected"]) -> "TurnRoom":
        """By row, as ``LatentState.select``."""
        return TurnRoom(self.eos_id, self.room[rows])

    def after(self, actions: Int[Tensor, " state"]) -> "TurnRoom":
        """The room that is left after one more token each."""
        return TurnRoom(self.eos_id, torch.where(actions == self.eos_id, 0, self.room - 1))


@dataclass(frozen=True)
class ImaginedRollout:
    """Rollouts of a world model from a batch of roots.

    ``rewards[:, h]`` and ``continuations[:, h]`` belong to ``actions[:, h]``; ``values`` has one entry more, its first
    that of the root. ``alive[:, h]`` is the probability that step h is still inside the episode (product of the
    continuations before it): imagined steps after an imagined end weigh nothing.

    ``in_turn[:, h]`` is False from the first step that is not the policy's to take: its turn is over, and what follows
    is the world's reply. There the rollout stands still: reward 0, continuation 1, the value of the border, and a
    log-probability and an entropy of 0.
    """

    actions: Int[Tensor, "root horizon"]
    logprobs: Float[Tensor, "root horizon"]
    entropies: Float[Tensor, "root horizon"]
    rewards: Float[Tensor, "root horizon"]
    continuations: Float[Tensor, "root horizon"]
    alive: Float[Tensor, "root horizon"]
    values: Float[Tensor, "root horizon_plus_1"]
    in_turn: Bool[Tensor, "root horizon"]


@runtime_checkable
class WorldModel(Protocol[State]):
    """Encode, step, predict; and what can be asked of them."""

    @property
    def action_conditional(self) -> bool:
        """Whether ``step`` depends on the action."""
        ...

    @property
    def max_horizon(self) -> int | None:
        """Steps it can take from an encoded state; None is no limit."""
        ...

    def encode(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        root_rows: Int[Tensor, " root"] | None = None,
        root_positions: Int[Tensor, " root"] | None = None,
        features: TrunkFeatures | None = None,
    ) -> State:
        """States at chosen prefixes: root n is ``input_ids[root_rows[n], :root_positions[n] + 1]``.

        Without roots: the whole of each row. One pass over the batch serves all roots. ``features``, the trunk's of
        this very text by the weights it has now, save its forward where they are at hand; a back-end that keeps
        more of the trunk than its hidden states, or has none, does without them.
        """
        ...

    def step(self, state: State, actions: Int[Tensor, " state"]) -> State:
        """The states after one more token each."""
        ...

    def predict(self, state: State, with_logits: bool = True) -> Prediction:
        """Read the states; without logits the unembedding is not paid for."""
        ...
