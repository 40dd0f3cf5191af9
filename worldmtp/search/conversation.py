"""Dynamics of a conversation that goes on through what the world replies, for a search to plan in.

::

    text      prompt   l      10       d       20H
    written   world    policy reply    policy  reply
    node        0   .........> 1   .........>   2       an edge is a token, and the reply to it where it ends a turn
    drawn              at every visit  at every visit

A state is a text, as the policy's own world model reads it (``inner``), and where the conversation stands (``Talk``). A
token that ends the policy's turn is answered within the same step: the reply is drawn from a ``ReplySource`` and read
by ``inner`` token by token, so that the policy's logits and values after it are those of the text with the reply.
Rewards and ends are the reply source's; inside a turn nothing is paid. The value of a text that goes on is the policy's
own, and after an end nothing comes, be it the world's, that of the room for tokens, or that of the turns.

Rules as in the environment (``envs.rewards.TurnRewards``): EOS ends a turn, or its ``max_turn``-th token; a turn that
the room cuts off is not answered; of a reply that does not fit, what does is heard.

Left out: ``truncation_score="zero"``, by which a conversation that is cut off gives back what it was paid, and which
``WorldSearchPolicy`` refuses; and heads of few depths as ``inner``, since replies take steps as tokens do.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.dynamics.conversations import ReplySource
from worldmtp.dynamics.protocol import Prediction, WorldModel
from worldmtp.dynamics.states import StateTable
from worldmtp.dynamics.turns import NOTHING


@dataclass(frozen=True)
class Talk(StateTable):
    """Where conversations stand.

    Attributes:
        heard: the reply source's states.
        said: the tokens of the turn that is not over yet.
        room: tokens that the text has room for.
        num_left: tokens that the policy may still write.
        turns_left: turns that it may still take.
        reply: what was heard with the last token.
        reward: what was paid with it.
        is_over: whether the conversation ended with it.
    """

    heard: Any
    said: Int[Tensor, "state said"]
    room: Int[Tensor, " state"]
    num_left: Int[Tensor, " state"]
    turns_left: Int[Tensor, " state"]
    reply: Int[Tensor, "state reply"]
    reward: Float[Tensor, " state"]
    is_over: Bool[Tensor, " state"]


@dataclass(frozen=True)
class ConversationState(StateTable):
    """Texts of conversations: what the policy makes of them, and where they stand."""

    inner: Any
    talk: Talk

    @property
    def latent(self) -> Float[Tensor, "state hidden"]:
        """Those of the policy's states."""
        latent: Tensor = self.inner.latent
        return latent


class ConversationDynamics:
    """The policy's world model, and a source of replies; an answer is drawn from ``generator``.

    Args:
        inner: reads texts, of any length.
        replies: who answers.
        eos_id: the token that ends a turn.
        max_turn: the tokens after which a turn is over without it; None is no limit.
        generator: of the answers.

    Raises:
        ValueError: ``inner`` takes a limited number of steps.
    """

    action_conditional = True
    max_horizon: int | None = None
    models_replies = True

    def __init__(
        self,
        inner: WorldModel[Any],
        replies: ReplySource,
        eos_id: int,
        max_turn: int | None,
        generator: torch.Generator,
    ) -> None:
        if inner.max_horizon is not None:
            raise ValueError(
                f"{type(inner).__name__} takes {inner.max_horizon} steps, and a reply takes one a token; "
                "plan through replies over the trunk, world model 'oracle'."
            )
        self._inner, self._replies, self._generator = inner, replies, generator
        self._eos_id, self._max_turn = eos_id, max_turn
        self.tokens_read = 0
        """What ``inner`` has read, replies included, of all states."""

    def begin(
        self,
        inner: Any,
        heard: Any,
        said: Int[Tensor, "state said"],
        room: Int[Tensor, " state"],
        num_left: Int[Tensor, " state"],
    ) -> ConversationState:
        """Return states to plan from; see ``Talk``. ``said`` has a place for every token that a turn may have.

        Raises:
            ValueError: a conversation is over, where nothing can be planned.
        """
        least = torch.stack([room, num_left]).amin(dim=1)
        if int(least.min()) < 1:
            raise ValueError(
                f"room and num_left have {least.tolist()} at least; a conversation that is over has no token to search "
                "for."
            )
        shape = (len(room), self._replies.max_reply)
        talk = Talk(
            heard=heard,
            said=said,
            room=room,
            num_left=num_left,
            turns_left=self._replies.turns_left(heard),
            reply=torch.full(shape, NOTHING, device=room.device),
            reward=torch.zeros(len(room), dtype=torch.float64, device=room.device),
            is_over=torch.zeros(len(room), dtype=torch.bool, device=room.device),
        )
        return ConversationState(inner, talk)

    def speak(self, talk: Talk, tokens: Int[Tensor, " state"]) -> Talk:
        """Return where conversations stand after one more token each, and a draw of the reply where it ends a turn."""
        num_said = (talk.said != NOTHING).sum(dim=1)
        said = talk.said.scatter(1, num_said[:, None], tokens[:, None])
        ends_turn = tokens == self._eos_id
        if self._max_turn is not None:
            ends_turn |= num_said + 1 >= self._max_turn
        room, num_left = talk.room - 1, talk.num_left - 1
        talk = replace(
            talk,
            said=torch.where(ends_turn[:, None], NOTHING, said),
            turns_left=talk.turns_left - ends_turn.long(),
            reply=torch.full_like(talk.reply, NOTHING),
            reward=torch.zeros_like(talk.reward),
        )
        ended = torch.zeros_like(ends_turn)
        rows = ends_turn.nonzero()[:, 0]
        if len(rows):
            heard, answered = self._replies.answer(talk.heard.select(rows), said[rows], self._generator)
            places = torch.arange(answered.replies.shape[1], device=rows.device)
            fits = places < room[rows, None]
            talk = replace(
                talk,
                heard=talk.heard.put(rows, heard),
                reply=talk.reply.index_copy(0, rows, torch.where(fits, answered.replies, NOTHING)),
                reward=talk.reward.index_copy(0, rows, answered.rewards.to(talk.reward)),
            )
            ended[rows] = answered.ended
        room = room - (talk.reply != NOTHING).sum(dim=1)
        is_cut = (room <= 0) | (num_left <= 0) | (talk.turns_left <= 0)
        return replace(talk, room=room, num_left=num_left, is_over=ended | is_cut)

    def read(self, inner: Any, tokens: Int[Tensor, " state"], talk: Talk) -> Any:
        """Return the policy's states after the tokens and the replies to them; after an end, after the token alone."""
        inner = self._inner.step(inner, tokens)
        heard = torch.where(talk.is_over[:, None], NOTHING, talk.reply)
        self.tokens_read += len(tokens) + int((heard != NOTHING).sum())
        for place in range(heard.shape[1]):
            rows = (heard[:, place] != NOTHING).nonzero()[:, 0]
            if not len(rows):
                break
            if len(rows) == len(heard):
                inner = self._inner.step(inner, heard[:, place])
            else:
                inner = inner.put(rows, self._inner.step(inner.select(rows), heard[rows, place]))
        return inner

    def step(self, state: ConversationState, tokens: Int[Tensor, " state"]) -> ConversationState:
        """Return the states after one more token each, and after one draw of what it is answered with."""
        talk = self.speak(state.talk, tokens)
        return ConversationState(self.read(state.inner, tokens, talk), talk)

    def predict(self, state: ConversationState, with_logits: bool = True) -> Prediction:
        """Return the policy's logits and value, and what the source of replies has said of rewards and ends."""
        said, is_over = self._inner.predict(state.inner, with_logits), state.talk.is_over
        return Prediction(
            logits=said.logits,
            reward=state.talk.reward.to(said.value),
            continuation=(~is_over).to(said.value),
            value=torch.where(is_over, 0.0, said.value),
        )
