"""Drafts: guesses at the next tokens, which the trunk then checks in one forward. What makes them, and how they look.

A drafter sees what the trunk saw of the accepted tokens, and proposes what follows the newest one, which the trunk has
chosen and not yet read:

        cached by the trunk ............ newest | x_1  x_2  x_3
                                root --^

``NoDraft`` proposes nothing, ``LookupDraft`` what followed the last time (prompt look-up, Saxena 2023). The heads'
drafters are in ``worldmtp.decoding.head_drafts``, a smaller model's in ``worldmtp.decoding.model_draft``.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.decoding.acceptance import Tree
from worldmtp.decoding.policy import DecodingPolicy
from worldmtp.decoding.text import CachedTexts, IntArray
from worldmtp.model.trunk import TrunkFeatures


@dataclass(frozen=True)
class Draft:
    """Guesses at the tokens after each row's newest; ``num_drafts`` of a row are meant.

    ``log_q`` are the distributions that a chain's tokens were drawn from; None where they were chosen. With a ``tree``
    the tokens are those of its nodes but the root.
    """

    tokens: Int[Tensor, "row draft"]
    num_drafts: Int[Tensor, " row"]
    log_q: Float[Tensor, "row draft vocab"] | None = None
    tree: Tree | None = None


@runtime_checkable
class Drafter(Protocol):
    """What a session asks; rows are those of its ``CachedTexts``, whose ``ids`` hold the newest token already.

    One whose drafts branch takes more slots than it reaches tokens ahead, and says ``max_depth``: how many those are.
    """

    max_drafts: int
    """Slots a draft may take."""

    def start(self, texts: CachedTexts, features: TrunkFeatures) -> None:
        """Prompts were run: ``features`` of all their tokens, in slots."""
        ...

    def propose(self, texts: CachedTexts, policy: DecodingPolicy, num_drafts: int) -> Draft:
        """Guesses, at most ``num_drafts`` ahead; the drafter may write them to ``texts.ids`` after the newest token."""
        ...

    def observe(self, texts: CachedTexts, features: TrunkFeatures, num_new: IntArray) -> None:
        """The trunk ran the newest token and drafts, and ``num_new`` of each row are text now, the newest included.

        ``features`` are of the accepted tokens, in order from the first; what follows a row's last is not to be read.
        """
        ...

    def move_rows(self, sources: IntArray, targets: IntArray, num_left: int) -> None:
        """Rows were dropped; see ``CachedTexts.drop``."""
        ...


class NoDraft:
    """A ``Drafter`` that leaves everything to the trunk."""

    max_drafts = 0

    def start(self, texts: CachedTexts, features: TrunkFeatures) -> None:
        """Nothing to remember."""

    def propose(self, texts: CachedTexts, policy: DecodingPolicy, num_drafts: int) -> Draft:
        """Nothing."""
        rows = len(texts)
        return Draft(texts.ids.new_zeros((rows, 0)), texts.ids.new_zeros(rows))

    def observe(self, texts: CachedTexts, features: TrunkFeatures, num_new: IntArray) -> None:
        """Nothing to remember."""

    def move_rows(self, sources: IntArray, targets: IntArray, num_left: int) -> None:
        """Nothing to move."""


class LookupDraft(NoDraft):
    """Proposes what followed the most recent earlier occurrence of the last tokens, the longest match first.

    A row without one proposes nothing. ``max_ngram`` tokens are matched at most.
    """

    def __init__(self, max_drafts: int, max_ngram: int = 3) -> None:
        for name, value in (("max_drafts", max_drafts), ("max_ngram", max_ngram)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        self.max_drafts = max_drafts
        self._max_ngram = max_ngram

    def propose(self, texts: CachedTexts, policy: DecodingPolicy, num_drafts: int) -> Draft:
        """See the class."""
        lengths = torch.from_numpy(texts.num_cached + 1).to(texts.device)  # the newest token counts
        width = int(texts.num_cached.max()) + 1
        ids = texts.ids[:, :width]
        ends, found = torch.zeros_like(lengths), torch.zeros_like(lengths, dtype=torch.bool)
        matches = torch.ones((len(ids), width), dtype=torch.bool, device=texts.device)
        index = torch.arange(width, device=texts.device)
        for size in range(1, min(self._max_ngram, width) + 1):
            # matches[r, i]: the ``size`` tokens up to i are the row's last ``size``.
            last = ids.gather(1, (lengths - size).clamp_min(0)[:, None])
            shifted = torch.zeros_like(matches)
            shifted[:, size - 1 :] = ids[:, : width - size + 1] == last
            matches = matches & shifted & (index < (lengths - 1)[:, None]) & (lengths >= size + 1)[:, None]
            latest = torch.where(matches, index, -1).amax(dim=1)
            ends, found = torch.where(latest >= 0, latest, ends), found | (latest >= 0)
        steps = torch.arange(1, num_drafts + 1, device=texts.device)
        places = ends[:, None] + steps
        count = torch.where(found, (lengths - 1 - ends).clamp_max(num_drafts), 0)
        return Draft(ids.gather(1, places.clamp_max(width - 1)), count)


def write_drafts(texts: CachedTexts, tokens: Int[Tensor, "row draft"], num_before: int = 0) -> None:
    """Put drafts after each row's newest token and ``num_before`` drafts, where contexts are read from."""
    start = torch.from_numpy(texts.num_cached + 1 + num_before).to(texts.device)
    places = start[:, None] + torch.arange(tokens.shape[1], device=texts.device)
    texts.ids.scatter_(1, places, tokens)


def move(state: Tensor, sources: IntArray, targets: IntArray, num_left: int) -> Tensor:
    """Rows of a drafter's state, moved as ``CachedTexts.drop`` did."""
    if len(sources):
        rows = [torch.from_numpy(np.asarray(part)).to(state.device) for part in (targets, sources)]
        state[rows[0]] = state[rows[1]]
    return state[:num_left]
