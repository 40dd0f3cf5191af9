"""Decoding one prompt with its reasons: what was drafted, how likely it was, what the trunk said, what came of it.

``explain`` runs ``generate`` and describes each round, one forward of the trunk; displaying it is left to others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import SupportsIndex

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from worldmtp.decoding.acceptance import Draft
from worldmtp.decoding.drafts import Drafter
from worldmtp.decoding.generate import generate
from worldmtp.decoding.limits import TokenIds, as_integer
from worldmtp.decoding.sampling import SamplingConfig
from worldmtp.decoding.session import Round


class Fate(Enum):
    """What became of a drafted token."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNREACHED = "unreached"
    """It followed a refused token."""
    PAST_THE_END = "past the end"
    """The text had ended before it."""


@dataclass(frozen=True)
class Guess:
    """A token and the probability it was given."""

    token: int
    probability: float


@dataclass(frozen=True)
class DraftedToken:
    """A token that was drafted; ``trunk_probability`` is None where the trunk was not asked about it."""

    token: int
    fate: Fate
    trunk_probability: float | None


@dataclass(frozen=True)
class DraftedPlace:
    """A place after the newest token: the candidates for it, and what drafter and trunk found likely there.

    Attributes:
        tokens: one of a chain; several of a tree, where the first is followed further.
        drafter_view: the drafter's most likely tokens; empty where it has no distribution.
        trunk_view: the trunk's, after the text and the accepted drafts; empty where they do not reach this place.
    """

    tokens: tuple[DraftedToken, ...]
    drafter_view: tuple[Guess, ...]
    trunk_view: tuple[Guess, ...]


@dataclass(frozen=True)
class ExplainedRound:
    """One forward of the trunk.

    Attributes:
        text: the tokens before it, the prompt's included.
        places: what was drafted after them.
        own: the trunk's own token after the accepted drafts; None where the text had ended before it.
        own_view: the trunk's most likely tokens there.
    """

    text: tuple[int, ...]
    places: tuple[DraftedPlace, ...]
    own: Guess | None
    own_view: tuple[Guess, ...]

    @property
    def accepted(self) -> tuple[int, ...]:
        """Return the drafts that became text, in order."""
        return tuple(draft.token for place in self.places for draft in place.tokens if draft.fate is Fate.ACCEPTED)

    @property
    def new_tokens(self) -> tuple[int, ...]:
        """Return everything that this forward added to the text."""
        return self.accepted + (() if self.own is None else (self.own.token,))


@dataclass(frozen=True)
class Explanation:
    """A decoded text as the rounds that made it, one forward of the trunk each; the first read the prompt."""

    prompt: tuple[int, ...]
    rounds: tuple[ExplainedRound, ...]

    @property
    def new_tokens(self) -> tuple[int, ...]:
        """Return the text after the prompt."""
        return tuple(token for one in self.rounds for token in one.new_tokens)


def explain(
    model: nn.Module,
    prompt: Shaped[Tensor, "..."],
    *,
    max_new_tokens: SupportsIndex,
    eos_token_id: TokenIds | None = None,
    sampling: SamplingConfig | None = None,
    draft: str | nn.Module | Drafter = "mtp",
    num_draft: SupportsIndex | None = None,
    tree: Sequence[SupportsIndex] | None = None,
    generator: torch.Generator | None = None,
    num_likeliest: int = 5,
) -> Explanation:
    """Decode as ``worldmtp.decoding.generate`` does with these arguments, greedily by default, and keep the reasons.

    ``prompt`` is the ids of one prompt, without padding. Probabilities are those of the processed distributions, in
    which drafts and trunk are compared; the ``num_likeliest`` most likely tokens of each are kept.

    Raises:
        ValueError: as ``generate``, or more than one prompt.
        MemoryError: as ``generate``.
        TypeError: as ``generate``.
    """
    if prompt.ndim != 1:
        raise ValueError(
            f"prompt has shape {tuple(prompt.shape)}, expected (tokens,): one prompt, such as input_ids[0]."
        )
    sampling = SamplingConfig() if sampling is None else sampling
    text, rounds = tuple(prompt.tolist()), list[ExplainedRound]()

    def keep(one: Round, rows: Int[Tensor, " row"], num_kept: Int[Tensor, " row"]) -> None:
        new = (token for before in rounds for token in before.new_tokens)
        rounds.append(_explained((*text, *new), one, int(num_kept[0]), num_likeliest))

    generate(
        model,
        prompt[None],
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_token_id,
        do_sample=sampling.do_sample,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        logits_processors=sampling.processors,
        draft=draft,
        num_draft=None if num_draft is None else as_integer("num_draft", num_draft, "a number of tokens"),
        tree=tree,
        generator=generator,
        on_round=keep,
    )
    return Explanation(text, tuple(rounds))


def _explained(text: tuple[int, ...], one: Round, num_kept: int, num_likeliest: int) -> ExplainedRound:
    num_accepted, log_policy, drafter_logits = int(one.num_accepted[0]), one.log_policy[0], one.draft.logits
    emitted: list[int] = one.tokens[0].tolist()
    views = [_likeliest(log_probs, num_likeliest) for log_probs in log_policy[: num_accepted + 1]]
    places, is_followed = list[DraftedPlace](), True
    for place, candidates in enumerate(_candidates(one.draft)):
        is_past = place >= num_kept and num_kept <= num_accepted
        is_judged = place <= num_accepted and is_followed and not is_past
        tokens = tuple(
            DraftedToken(
                token,
                _fate(is_past, is_judged, place < num_accepted and token == emitted[place]),
                float(log_policy[place, token].exp()) if is_judged else None,
            )
            for token in candidates
        )
        places.append(
            DraftedPlace(
                tokens=tokens,
                drafter_view=_likeliest(drafter_logits[place][0, 0], num_likeliest) if drafter_logits else (),
                trunk_view=views[place] if is_judged else (),
            )
        )
        is_followed = tokens[0].fate is Fate.ACCEPTED  # only the first candidate has drafts after it
    if num_kept <= num_accepted:
        return ExplainedRound(text, tuple(places), None, ())
    token = emitted[num_accepted]
    own = Guess(token, float(log_policy[num_accepted, token].exp()))
    return ExplainedRound(text, tuple(places), own, views[num_accepted])


def _candidates(draft: Draft) -> list[list[int]]:
    """Return the tokens drafted for each place after the newest token."""
    tokens: list[int] = draft.tokens[0].tolist()
    if draft.tree is None:
        return [[token] for token in tokens[: int(draft.num_drafts[0])]]
    depths = draft.tree.depths[1:].tolist()
    return [
        [token for token, at in zip(tokens, depths, strict=True) if at == depth] for depth in range(1, max(depths) + 1)
    ]


def _fate(is_past: bool, is_judged: bool, is_accepted: bool) -> Fate:
    if is_past:
        return Fate.PAST_THE_END
    if not is_judged:
        return Fate.UNREACHED
    return Fate.ACCEPTED if is_accepted else Fate.REFUSED


def _likeliest(logits: Float[Tensor, " vocab"], number: int) -> tuple[Guess, ...]:
    """Return the most likely tokens, without those of probability zero."""
    best = logits.softmax(dim=-1).topk(min(number, len(logits)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple(Guess(token, probability) for token, probability in pairs if probability > 0)
