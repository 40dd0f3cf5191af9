"""Conversations turn by turn: what was heard before a turn, what was said in it, what it earned, whether it ended.

A conversation is a chain ``heard_0 said_0 heard_1 said_1 ...``. ``heard_0`` is the opening, ``heard_{t+1}`` the world's
reply to turn t. The token axis of each is padded with ``NOTHING``; a reply ends where padding begins.

      heard_0    said_0   heard_1   said_1   heard_2
      opening    l        10        d        20H
      reward              0                  0
      ended               no                 yes
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

NOTHING = -1
"""Pads the tokens of an opening, a turn or a reply."""


@dataclass(frozen=True)
class Turns:
    """A batch of conversations. ``mask`` says which turns there are; the others hold nothing."""

    opening: Int[Tensor, "episode opening"]
    said: Int[Tensor, "episode turn said"]
    replies: Int[Tensor, "episode turn reply"]
    rewards: Float[Tensor, "episode turn"]
    ended: Bool[Tensor, "episode turn"]
    """The world ended the conversation with this turn; not where a limit of turns or tokens cut it off."""
    mask: Bool[Tensor, "episode turn"]

    def __len__(self) -> int:
        return len(self.opening)

    @property
    def device(self) -> torch.device:
        """Return where the tensors are."""
        return self.mask.device

    @property
    def returns(self) -> Float[Tensor, " episode"]:
        """Return what each conversation was paid."""
        return torch.where(self.mask, self.rewards, 0.0).sum(dim=1)

    @property
    def num_turns(self) -> Int[Tensor, " episode"]:
        """Return how many turns each conversation has."""
        return self.mask.sum(dim=1)

    def select(self, rows: Int[Tensor, " selected"]) -> "Turns":
        """Return some conversations, in any order and with repeats, as many turns long as the longest."""
        chosen = Turns(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})
        return chosen.first(int(chosen.num_turns.max())) if len(chosen) else chosen

    def first(self, num_turns: int) -> "Turns":
        """Return the first turns of every conversation."""
        by_turn = {name: getattr(self, name)[:, :num_turns] for name in ("said", "replies", "rewards", "ended", "mask")}
        return Turns(self.opening, **by_turn)

    @staticmethod
    def cat(parts: Sequence["Turns"]) -> "Turns":
        """Return the conversations of all parts, in their order."""
        columns = {}
        for field in fields(Turns):
            values = [getattr(part, field.name) for part in parts]
            widths = [max(value.shape[axis] for value in values) for axis in range(1, values[0].dim())]
            pad = NOTHING if values[0].dtype == torch.int64 else 0
            columns[field.name] = torch.cat([padded(value, widths, pad) for value in values])
        return Turns(**columns)


@dataclass(frozen=True)
class ImaginedReplies:
    """What followed a turn in imagination; a reply is padded with ``NOTHING``.

    ``disagreement``, in [0, 1], is what the model knows that it does not know; ``unheard`` says which replies no real
    conversation has had, though each of their tokens has stood at its place.
    """

    replies: Int[Tensor, "row reply"]
    rewards: Float[Tensor, " row"]
    ended: Bool[Tensor, " row"]
    disagreement: Float[Tensor, " row"]
    unheard: Bool[Tensor, " row"]


@runtime_checkable
class RepliesModel(Protocol):
    """What an imagined world asks: what a world would write, pay and end."""

    @property
    def max_reply(self) -> int:
        """Tokens of the longest reply."""
        ...

    def imagine(self, turns: Turns, turn: Int[Tensor, " row"], generator: torch.Generator) -> ImaginedReplies:
        """Return what follows turn ``turn`` of each conversation, of which that turn is the last that was said."""
        ...


def said_after(
    turns: Turns, rows: Int[Tensor, " asked"], turn: Int[Tensor, " asked"], history: bool
) -> list[tuple[int, ...]]:
    """Return a key for turn ``turn`` of each conversation of ``rows``: what was said in it, and after what.

    Two turns have one key where a model that reads no more could not foretell their replies apart: the text heard last
    and what was then said, or with ``history`` all that was heard and said up to there. The reply is not read.
    """
    keys = []
    for row, last in zip(rows.tolist(), turn.tolist(), strict=True):
        first = 0 if history else last
        texts = []
        for now in range(first, last + 1):
            texts += [turns.replies[row, now - 1] if now else turns.opening[row], turns.said[row, now]]
        # Padding stands between the texts, once: it tells where one ends, and is no token.
        told = [[*(token for token in text.tolist() if token != NOTHING), NOTHING] for text in texts]
        keys.append(tuple(token for text in told for token in text))
    return keys


def padded(values: Tensor, widths: Sequence[int], pad: int) -> Tensor:
    """Return the values with all axes but the first filled up to ``widths`` at their end."""
    missing = [(0, width - have) for width, have in zip(widths, values.shape[1:], strict=True)]
    return functional.pad(values, [edge for pair in reversed(missing) for edge in pair], value=pad)
