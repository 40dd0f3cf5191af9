"""What a model of replies gives to whole answers of a world, and how often a world has answered so.

An answer is a reply, its end included, and whether the conversation ends with it. So the probability of a conversation,
the policy's turns given, is the product of its answers' probabilities. Rewards are apart: they are no draws.

Left out: which of an ensemble's members is asked; the probabilities are of all.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.dynamics.replies import ReplyModel
from worldmtp.dynamics.turns import NOTHING, Turns

_DRAWS = 8
"""Answers drawn for one entropy."""
_PATHS = 8
"""Conversations drawn for one open loop."""
_TRIES = 8
"""Turns of other conversations that are looked at for a reply that differs."""


@dataclass(frozen=True)
class AnswerLogprobs:
    """Log-probabilities of what each turn was answered, by every member; NaN where there is no turn."""

    reply: Float[Tensor, "member episode turn"]
    end: Float[Tensor, "member episode turn"]

    def of_members(self, member: Int[Tensor, " episode"]) -> Float[Tensor, "episode turn"]:
        """Return those of whole answers by a member of each conversation's own."""
        return (self.reply + self.end)[member, torch.arange(len(member))]


@torch.no_grad()
def answer_logprobs(
    model: ReplyModel, turns: Turns, replies: Int[Tensor, "episode turn reply"] | None = None
) -> AnswerLogprobs:
    """Return what every member gives to the answers there were, or to other ``replies`` at the same places."""
    replies = turns.replies if replies is None else replies
    shape = (model.num_members, *turns.mask.shape)
    reply, end = (torch.full(shape, float("nan"), dtype=torch.float64, device=turns.device) for _ in range(2))
    heard = _with_room(turns, model.max_reply)
    for number, rows, turn in _turn_by_turn(turns.mask):
        vectors = model.network.turn_vectors(heard.select(rows), turn)
        reply[:, rows, number], end[:, rows, number] = model.answer_logprobs(
            vectors, turn, replies[rows, number], turns.ended[rows, number]
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
    for number, rows, turn in _turn_by_turn(turns.mask):
        vectors = model.network.turn_vectors(heard.select(rows), turn).repeat_interleave(_DRAWS, dim=1)
        turn, chosen = turn.repeat_interleave(_DRAWS), member[rows].repeat_interleave(_DRAWS)
        drawn = model.drawn(vectors, turn, chosen, generator)
        reply, end = model.answer_logprobs(vectors, turn, drawn.replies, drawn.ended)
        nats = -(reply + end)[chosen, torch.arange(len(chosen))]
        entropy[rows, number] = nats.unflatten(0, (len(rows), _DRAWS)).mean(dim=1)
    return entropy


@torch.no_grad()
def open_loop_logprobs(
    model: ReplyModel, turns: Turns, member: Int[Tensor, " episode"], generator: torch.Generator
) -> Float[Tensor, "episode turn"]:
    """Return what a member gives to each real reply where it has drawn all earlier ones itself; NaN where no turn is.

    The words are the real ones. It is the logarithm of a mean over drawn paths, of those that have not ended; NaN where
    all have. The first reply is foretold as from the real text.
    """
    repeated = {name: values.repeat_interleave(_PATHS, dim=0) for name, values in vars(turns).items()}
    real, room = repeated["replies"], (*repeated["mask"].shape, model.max_reply)
    drawn = Turns(**(repeated | {"replies": torch.full(room, NOTHING)}))
    member, alive = member.repeat_interleave(_PATHS), torch.ones(len(drawn), dtype=torch.bool)
    probs = torch.zeros(drawn.mask.shape, dtype=torch.float64)
    counted = torch.zeros_like(drawn.mask)
    for number in range(drawn.mask.shape[1]):
        rows = torch.nonzero(drawn.mask[:, number] & alive)[:, 0]
        if not len(rows):
            continue
        turn = torch.full_like(rows, number)
        vectors = model.network.turn_vectors(drawn.select(rows), turn)
        logprob, _ = model.answer_logprobs(vectors, turn, real[rows, number], drawn.ended[rows, number])
        probs[rows, number] = logprob[member[rows], torch.arange(len(rows))].exp()
        counted[rows, number] = True
        answer = model.drawn(vectors, turn, member[rows], generator)
        drawn.replies[rows, number] = answer.replies
        alive[rows] = ~answer.ended
    shape = (len(turns), _PATHS, drawn.mask.shape[1])
    mean = probs.view(shape).sum(dim=1) / counted.view(shape).sum(dim=1)  # 0 / 0 is NaN: nobody got so far
    return mean.log()


def other_replies(
    turns: Turns, generator: torch.Generator
) -> tuple[Int[Tensor, "episode turn reply"], Bool[Tensor, "episode turn"]]:
    """Return another turn's reply for each turn, and where there is one that differs.

    It is drawn from the same conversation, at least two turns away, and where all are alike from any conversation.
    """
    places = torch.nonzero(turns.mask).tolist()
    texts = {(row, turn): tuple(_text(turns.replies[row, turn])) for row, turn in places}
    chosen, there = turns.replies.clone(), torch.zeros_like(turns.mask)

    def one_of(number: int) -> int:
        return int(torch.randint(number, (), generator=generator))

    for row, turn in places:
        own = texts[row, turn]
        near = [(row, other) for other in range(int(turns.num_turns[row])) if abs(other - turn) > 1]
        found = [place for place in near if texts[place] != own]
        if not found:
            tried = [places[one_of(len(places))] for _ in range(_TRIES)]
            found = [(first, second) for first, second in tried if texts[first, second] != own]
        if found:
            place = found[one_of(len(found))]
            chosen[row, turn], there[row, turn] = turns.replies[place], True
    return chosen, there


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


def _turn_by_turn(mask: Bool[Tensor, "episode turn"]) -> Iterator[tuple[int, Int[Tensor, " row"], Int[Tensor, " row"]]]:
    """Yield each turn that some conversation has: its number, whose it is, and the number once for each of these."""
    for number in range(mask.shape[1]):
        rows = torch.nonzero(mask[:, number])[:, 0]
        if len(rows):
            yield number, rows, torch.full_like(rows, number)


def _text(tokens: Int[Tensor, " place"]) -> list[int]:
    texts: list[int] = tokens[tokens != NOTHING].tolist()
    return texts


def _with_room(turns: Turns, max_reply: int) -> Turns:
    """Return the conversations with replies cut to what a model can hear."""
    return Turns(**(vars(turns) | {"replies": turns.replies[..., :max_reply]}))
