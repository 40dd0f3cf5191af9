"""What a model of replies gives to whole answers of a world, and how often a world has answered so.

An answer is a reply, its end included, and whether the conversation ends with it. So the probability of a conversation,
the policy's turns given, is the product of its answers' probabilities. Rewards are apart: they are no draws.

Left out: which of an ensemble's members is asked; the probabilities are of all.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.dynamics.replies import ReplyModel
from worldmtp.dynamics.turns import NOTHING, Turns

_DRAWS = 8
"""Answers drawn for one entropy."""


@dataclass(frozen=True)
class AnswerLogprobs:
    """Log-probabilities of what each turn was answered, by every member; NaN where there is no turn."""

    reply: Float[Tensor, "member episode turn"]
    end: Float[Tensor, "member episode turn"]

    def of_members(self, member: Int[Tensor, " episode"]) -> Float[Tensor, "episode turn"]:
        """Return those of whole answers by a member of each conversation's own."""
        return (self.reply + self.end)[member, torch.arange(len(member))]


@torch.no_grad()
def answer_logprobs(model: ReplyModel, turns: Turns) -> AnswerLogprobs:
    """Return what every member gives to the answers there were."""
    shape = (model.num_members, *turns.mask.shape)
    reply, end = (torch.full(shape, float("nan"), dtype=torch.float64, device=turns.device) for _ in range(2))
    heard = _with_room(turns, model.max_reply)
    for number in range(turns.mask.shape[1]):
        rows = torch.nonzero(turns.mask[:, number])[:, 0]
        if not len(rows):
            continue
        turn = torch.full_like(rows, number)
        vectors = model.network.turn_vectors(heard.select(rows), turn)
        reply[:, rows, number], end[:, rows, number] = model.answer_logprobs(
            vectors, turn, turns.replies[rows, number], turns.ended[rows, number]
        )
    return AnswerLogprobs(reply, end)


@torch.no_grad()
def answer_entropies(
    model: ReplyModel, turns: Turns, member: Int[Tensor, " episode"], generator: torch.Generator
) -> Float[Tensor, "episode turn"]:
    """Return the entropy of a member's answers to each turn in nats; NaN where there is no turn.

    It is the mean of -log q of a few answers that the member draws: unbiased, and known before the world answers.
    """
    entropy = torch.full(turns.mask.shape, float("nan"), dtype=torch.float64, device=turns.device)
    heard = _with_room(turns, model.max_reply)
    for number in range(turns.mask.shape[1]):
        rows = torch.nonzero(turns.mask[:, number])[:, 0]
        if not len(rows):
            continue
        turn = torch.full_like(rows, number)
        vectors = model.network.turn_vectors(heard.select(rows), turn).repeat_interleave(_DRAWS, dim=1)
        turn, chosen = turn.repeat_interleave(_DRAWS), member[rows].repeat_interleave(_DRAWS)
        drawn = model.drawn(vectors, turn, chosen, generator)
        reply, end = model.answer_logprobs(vectors, turn, drawn.replies, drawn.ended)
        nats = -(reply + end)[chosen, torch.arange(len(chosen))]
        entropy[rows, number] = nats.unflatten(0, (len(rows), _DRAWS)).mean(dim=1)
    return entropy


def times_asked(
    turns: Turns, among: Int[Tensor, " episode"]
) -> tuple[Int[Tensor, "episode turn"], Int[Tensor, "episode turn"]]:
    """Return how often a world was asked just this, opening and all turns before included, and how often it said this.

    Counted are the conversations with the same number in ``among``. Answers are alike whose replies are, and which both
    end the conversation or do not. 0 where there is no turn.
    """
    known: dict[tuple[object, ...], int] = {}

    def number_of(*text: object) -> int:
        return known.setdefault(text, len(known))

    asked, alike = (torch.full(turns.mask.shape, -1) for _ in range(2))
    for row in range(len(turns)):
        so_far = number_of("opening", int(among[row]), tuple(_text(turns.opening[row])))
        for turn in torch.nonzero(turns.mask[row])[:, 0].tolist():
            question = number_of("said", so_far, tuple(_text(turns.said[row, turn])))
            answer = tuple(_text(turns.replies[row, turn])), bool(turns.ended[row, turn])
            so_far = number_of("answer", question, *answer)
            asked[row, turn], alike[row, turn] = question, so_far
    times = Counter([*asked[turns.mask].tolist(), *alike[turns.mask].tolist()])
    count = torch.tensor([times[number] for number in range(len(known))] or [0])
    return tuple(torch.where(turns.mask, count[of.clamp_min(0)], 0) for of in (asked, alike))  # type: ignore[return-value]  # two


def _text(tokens: Int[Tensor, " place"]) -> list[int]:
    texts: list[int] = tokens[tokens != NOTHING].tolist()
    return texts


def _with_room(turns: Turns, max_reply: int) -> Turns:
    """Return the conversations with replies cut to what a model can hear."""
    return Turns(**(vars(turns) | {"replies": turns.replies[..., :max_reply]}))
