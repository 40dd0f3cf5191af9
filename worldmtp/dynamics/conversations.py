"""Who answers while a conversation is planned: a model of replies, or whoever else can say what a world would reply.

A ``ReplySource`` is asked one turn at a time, for many conversations at once, and may answer the same turn otherwise
when it is asked again. What it remembers of a conversation is a table of states of its own.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.dynamics.states import StateTable
from worldmtp.dynamics.turns import NOTHING, RepliesModel, Turns, padded


@dataclass(frozen=True)
class Answered(StateTable):
    """What came after a turn; ``replies`` are padded with ``NOTHING``."""

    replies: Int[Tensor, "state reply"]
    rewards: Float[Tensor, " state"]
    ended: Bool[Tensor, " state"]


@runtime_checkable
class ReplySource(Protocol):
    """What a search through replies asks."""

    @property
    def max_reply(self) -> int:
        """Tokens of the longest reply."""
        ...

    def begin(self, turns: Turns, rows: Int[Tensor, " state"]) -> Any:
        """Return states of conversations of which these turns are over; ``rows`` are those of their environment."""
        ...

    def turns_left(self, heard: Any) -> Int[Tensor, " state"]:
        """Return how many turns each conversation may still have."""
        ...

    def answer(self, heard: Any, said: Int[Tensor, "state said"], generator: torch.Generator) -> tuple[Any, Answered]:
        """Return one draw of what follows when ``said``, padded with ``NOTHING``, is said next, and the states then."""
        ...


@dataclass(frozen=True)
class Heard(StateTable):
    """Conversations as a model of replies reads them, with room for turns to come; ``num_turns`` are over."""

    opening: Int[Tensor, "state opening"]
    said: Int[Tensor, "state turn said"]
    replies: Int[Tensor, "state turn reply"]
    num_turns: Int[Tensor, " state"]


class ForeseenReplies:
    """A ``ReplySource`` of a model of replies: each answer is a fresh draw from the model.

    One thing is known and not modelled: a conversation has ``max_turns`` turns at most, as real ones have had. One that
    has had as many already may have one more.

    Raises:
        ValueError: that is less than one.
    """

    def __init__(self, model: RepliesModel, max_turns: int) -> None:
        if max_turns < 1:
            raise ValueError(f"max_turns={max_turns} must be at least 1.")
        self._model, self._max_turns = model, max_turns

    @property
    def max_reply(self) -> int:
        """Tokens of the longest reply that the model has room for."""
        return self._model.max_reply

    def begin(self, turns: Turns, rows: Int[Tensor, " state"]) -> Heard:
        """Return conversations of which these turns are over; their rewards and ends are not read, nor are ``rows``.

        Raises:
            ValueError: a reply is longer than the model has room for.
        """
        longest = int((turns.replies != NOTHING).sum(dim=-1).max())
        if longest > self.max_reply:
            raise ValueError(
                f"a reply of {longest} tokens where the model of replies has room for {self.max_reply}; train it with "
                f"world_model.replies.max_reply={longest}."
            )
        number = int(turns.num_turns.max())
        room = max(self._max_turns, number + 1)
        said = padded(turns.said[:, :number], (room, turns.said.shape[2]), NOTHING)
        replies = padded(turns.replies[:, :number, : self.max_reply], (room, self.max_reply), NOTHING)
        return Heard(turns.opening, said, replies, turns.num_turns)

    def turns_left(self, heard: Heard) -> Int[Tensor, " state"]:
        """Return how many turns each conversation may still have."""
        return (self._max_turns - heard.num_turns).clamp_min(1)

    def answer(
        self, heard: Heard, said: Int[Tensor, "state said"], generator: torch.Generator
    ) -> tuple[Heard, Answered]:
        """Return one draw of the model's, and the conversations with it."""
        rows, turn = torch.arange(len(said), device=said.device), heard.num_turns
        spoken = heard.said.clone()
        spoken[rows, turn] = said
        shape = spoken.shape[:2]
        turns = Turns(
            opening=heard.opening,
            said=spoken,
            replies=heard.replies,
            rewards=torch.zeros(shape, device=said.device),
            ended=torch.zeros(shape, dtype=torch.bool, device=said.device),
            mask=torch.ones(shape, dtype=torch.bool, device=said.device),
        )
        drawn = self._model.imagine(turns, turn, generator)
        replies = heard.replies.clone()
        replies[rows, turn] = drawn.replies
        return Heard(heard.opening, spoken, replies, turn + 1), Answered(drawn.replies, drawn.rewards, drawn.ended)
