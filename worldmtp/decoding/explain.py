"""Decoding one prompt with its reasons: what was drafted, how likely it was held, what the trunk said, what came of it.

``explain`` runs the session that ``generate`` runs and makes a record of every forward of the trunk; showing it is left
to others. Drafters and policies are watched from outside: a drafter asks its policy what it makes of each depth's
logits, once for each place that it drafts, and what it is told is what it holds likely there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import SupportsIndex

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from worldmtp.decoding.drafts import Draft, Drafter
from worldmtp.decoding.evaluation_mode import evaluation_mode
from worldmtp.decoding.integers import as_integer
from worldmtp.decoding.lean import make_runner
from worldmtp.decoding.limits import check_cache, check_prompts
from worldmtp.decoding.making import as_widths, make_drafter
from worldmtp.decoding.policy import DecodingPolicy
from worldmtp.decoding.sampling import SamplingConfig
from worldmtp.decoding.session import DecodingSession, Emission
from worldmtp.decoding.stopping import StopRule, TokenIds, first_stop, make_stop_rule
from worldmtp.decoding.text import CachedTexts, IntArray
from worldmtp.decoding.trunk import as_mtp_model
from worldmtp.model.trunk import TrunkFeatures


class Fate(Enum):
    """What became of a drafted token."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNREACHED = "unreached"
    """It stood on a refused token, so nobody asked."""
    PAST_THE_END = "past the end"
    """The text had ended before it."""


@dataclass(frozen=True)
class Guess:
    """A token and the probability it was given."""

    token: int
    probability: float


@dataclass(frozen=True)
class DraftedToken:
    """A token that was drafted; ``trunk_probability`` is None where the trunk's word on it did not count."""

    token: int
    fate: Fate
    trunk_probability: float | None


@dataclass(frozen=True)
class DraftedPlace:
    """A place after the newest token: the candidates for it, and who held what likely there.

    Attributes:
        tokens: one of a chain, several of a tree, of which the first is followed further.
        drafter_view: the drafter's likeliest tokens; empty where it has no distribution.
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
        own_view: the trunk's likeliest tokens there.
    """

    text: tuple[int, ...]
    places: tuple[DraftedPlace, ...]
    own: Guess | None
    own_view: tuple[Guess, ...]

    @property
    def accepted(self) -> tuple[int, ...]:
        """Drafts that became text, in order."""
        return tuple(draft.token for place in self.places for draft in place.tokens if draft.fate is Fate.ACCEPTED)

    @property
    def new_tokens(self) -> tuple[int, ...]:
        """All that this forward added to the text."""
        return self.accepted + (() if self.own is None else (self.own.token,))


@dataclass(frozen=True)
class Explanation:
    """A decoded text as the rounds that made it, one forward of the trunk each; the first read the prompt."""

    prompt: tuple[int, ...]
    rounds: tuple[ExplainedRound, ...]

    @property
    def new_tokens(self) -> tuple[int, ...]:
        """The text after the prompt."""
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

    ``prompt`` is the ids of one, without padding. Probabilities are those of the processed distributions, which drafts
    and trunk are compared in; ``num_likeliest`` tokens of each are kept.

    Raises:
        ValueError: as ``generate``.
        MemoryError: as ``generate``.
        TypeError: as ``generate``.
    """
    sampling = SamplingConfig() if sampling is None else sampling
    if sampling.do_sample and generator is None:
        raise ValueError("do_sample=True draws; pass generator=torch.Generator().manual_seed(0).")
    whole = as_mtp_model(model)
    if prompt.ndim != 1:
        raise ValueError(
            f"prompt has shape {tuple(prompt.shape)}, expected (tokens,): one prompt, such as input_ids[0]."
        )
    stops = make_stop_rule(eos_token_id, (), max_new_tokens, whole.num_tokens)
    ids, mask = check_prompts(whole, prompt[None], None, 0, stops.max_new_tokens)
    length = None if num_draft is None else as_integer("num_draft", num_draft, "a number of tokens")
    drafter = _WatchedDrafter(make_drafter(whole, draft, length, as_widths("tree", tree)))
    capacity = ids.shape[1] + stops.max_new_tokens
    runner = make_runner(whole)
    check_cache(whole, 1, capacity + drafter.max_drafts, None, runner.copied_bytes)
    with evaluation_mode(whole):
        session = DecodingSession(whole, runner, drafter, DecodingPolicy(sampling, generator), capacity)
        text, new, rounds = tuple(prompt.tolist()), list[int](), list[ExplainedRound]()
        emission = session.prefill(ids, mask)
        while True:
            num_kept, is_done = _ends(new, emission, stops)
            rounds.append(_explained((*text, *new), drafter, emission, num_kept, num_likeliest))
            new += rounds[-1].new_tokens
            if is_done:
                return Explanation(text, tuple(rounds))
            emission = session.advance()


class _WatchedPolicy(DecodingPolicy):
    """Remembers what it was asked about: one row of logits for each place that is drafted."""

    def __init__(self, watched: DecodingPolicy) -> None:
        super().__init__(watched.sampling, watched.generator)
        self.seen: list[Float[Tensor, " vocab"]] = []

    def processed(
        self, logits: Float[Tensor, "row place vocab"], texts: CachedTexts, num_before: int = 0
    ) -> Float[Tensor, "row place vocab"]:
        """As the policy, and remembered."""
        processed = super().processed(logits, texts, num_before)
        self.seen += list(processed[0])
        return processed


class _WatchedDrafter:
    """A ``Drafter`` whose last draft is remembered, with the distributions behind it."""

    def __init__(self, watched: Drafter) -> None:
        self._watched = watched
        self.max_drafts = watched.max_drafts
        self.draft: Draft | None = None
        self.seen: list[Float[Tensor, " vocab"]] = []

    def start(self, texts: CachedTexts, features: TrunkFeatures) -> None:
        """Handed on."""
        self._watched.start(texts, features)

    def propose(self, texts: CachedTexts, policy: DecodingPolicy, num_drafts: int) -> Draft:
        """Handed on, and remembered."""
        watched = _WatchedPolicy(policy)
        self.draft = self._watched.propose(texts, watched, num_drafts)
        self.seen = watched.seen
        return self.draft

    def observe(self, texts: CachedTexts, features: TrunkFeatures, num_new: IntArray) -> None:
        """Handed on."""
        self._watched.observe(texts, features, num_new)

    def move_rows(self, sources: IntArray, targets: IntArray, num_left: int) -> None:
        """Handed on."""
        self._watched.move_rows(sources, targets, num_left)


def _ends(new: list[int], emission: Emission, stops: StopRule) -> tuple[int, bool]:
    """How many of a round's tokens belong to the text, and whether it ends with them."""
    old, count = torch.tensor([len(new)]), torch.from_numpy(emission.counts)
    everything = torch.tensor([new + emission.tokens[0].tolist()])
    lengths, is_done = first_stop(everything, old, old + count, stops)
    return int(lengths[0] - old[0]), bool(is_done[0])


def _explained(
    text: tuple[int, ...], drafter: _WatchedDrafter, emission: Emission, num_kept: int, num_likeliest: int
) -> ExplainedRound:
    num_accepted = int(emission.num_accepted[0])
    emitted: list[int] = emission.tokens[0].tolist()
    views = [_likeliest(log_probs, num_likeliest) for log_probs in emission.log_policy[0, : num_accepted + 1]]
    places, has_path = list[DraftedPlace](), True
    for place, candidates in enumerate(_candidates(drafter.draft)):
        is_past = place >= num_kept and num_kept <= num_accepted
        is_judged = place <= num_accepted and has_path and not is_past
        tokens = tuple(
            DraftedToken(
                token,
                _fate(is_past, is_judged, place < num_accepted and token == emitted[place]),
                float(emission.log_policy[0, place, token].exp()) if is_judged else None,
            )
            for token in candidates
        )
        places.append(
            DraftedPlace(
                tokens=tokens,
                drafter_view=_likeliest(drafter.seen[place], num_likeliest) if drafter.seen else (),
                trunk_view=views[place] if is_judged else (),
            )
        )
        has_path = tokens[0].fate is Fate.ACCEPTED  # the first alone has drafts after it
    if num_kept <= num_accepted:
        return ExplainedRound(text, tuple(places), None, ())
    token = emitted[num_accepted]
    own = Guess(token, float(emission.log_policy[0, num_accepted, token].exp()))
    return ExplainedRound(text, tuple(places), own, views[num_accepted])


def _candidates(draft: Draft | None) -> list[list[int]]:
    """The tokens drafted for each place after the newest token."""
    if draft is None:
        return []
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
    """The likeliest tokens, those that cannot come left out."""
    best = logits.softmax(dim=-1).topk(min(number, len(logits)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple(Guess(token, probability) for token, probability in pairs if probability > 0)
