"""Drafters: what guesses at the next tokens, which the trunk then checks in one forward.

A drafter sees what the trunk read of the accepted tokens, and proposes what follows the newest one, which the trunk has
chosen and not yet read:

        cached by the trunk ............ newest | x_1  x_2  x_3
                                root --^

``NoDraft`` proposes nothing, ``LookupDraft`` what followed the same tokens before (prompt look-up, Saxena 2023),
``ModelDraft`` what a smaller causal LM writes (Leviathan et al. 2023, arXiv 2211.17192). The heads' drafters are in
``worldmtp.decoding.head_drafts``. ``make_drafter`` makes each of them by name.
"""

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from worldmtp.choices import check_choice
from worldmtp.decoding.acceptance import Draft
from worldmtp.decoding.cache import CachedTexts, IntArray
from worldmtp.decoding.head_drafts import head_drafter
from worldmtp.decoding.lean import make_runner
from worldmtp.decoding.sampling import DecodingPolicy
from worldmtp.decoding.trunk import as_mtp_model, evaluation_mode
from worldmtp.model import MTPModel
from worldmtp.model.adapters import without_peft_wrapper
from worldmtp.model.trunk import TrunkFeatures

DRAFTS = ("mtp", "lookup", "none")
_DEFAULT_DRAFTS = 4
"""Tokens of a draft by look-up or by a smaller model."""


@runtime_checkable
class Drafter(Protocol):
    """What a session asks for drafts; rows are those of its ``CachedTexts``, whose ``ids`` hold the newest token.

    A drafter whose drafts branch takes more slots than it reaches tokens ahead; its ``max_depth`` says how many.
    """

    max_drafts: int
    """Slots that a draft may take."""

    def start(self, texts: CachedTexts, features: TrunkFeatures) -> None:
        """Take in prompts: ``features`` are of all their tokens, in slots."""
        ...

    def propose(self, texts: CachedTexts, policy: DecodingPolicy, num_drafts: int) -> Draft:
        """Return guesses at most ``num_drafts`` ahead; it may write them to ``texts`` behind the newest token."""
        ...

    def observe(self, texts: CachedTexts, features: TrunkFeatures, num_new: IntArray) -> None:
        """Take in a round: ``num_new`` tokens of each row are text now, the formerly newest one included.

        ``features`` are of the accepted tokens, in order from the first; ignore what follows a row's last one. Where
        somebody else wrote, there was no ``propose``, a row's text may have been cut before its new tokens, and rows
        that took no part have none.
        """
        ...

    def move_rows(self, sources: IntArray, targets: IntArray, num_left: int) -> None:
        """Follow rows that were dropped; see ``CachedTexts.drop``."""
        ...


class NoDraft:
    """A ``Drafter`` that leaves everything to the trunk."""

    max_drafts = 0

    def start(self, texts: CachedTexts, features: TrunkFeatures) -> None:
        """Keep no state."""

    def propose(self, texts: CachedTexts, policy: DecodingPolicy, num_drafts: int) -> Draft:
        """Return an empty draft."""
        return Draft.empty(texts.ids)

    def observe(self, texts: CachedTexts, features: TrunkFeatures, num_new: IntArray) -> None:
        """Keep no state."""

    def move_rows(self, sources: IntArray, targets: IntArray, num_left: int) -> None:
        """Keep no state."""


class LookupDraft(NoDraft):
    """A ``Drafter`` that proposes what followed the latest earlier occurrence of the last tokens.

    The longest match comes first, of at most ``max_ngram`` tokens. A row without a match gets no draft.
    """

    def __init__(self, max_drafts: int = _DEFAULT_DRAFTS, max_ngram: int = 3) -> None:
        for name, value in (("max_drafts", max_drafts), ("max_ngram", max_ngram)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        self.max_drafts = max_drafts
        self._max_ngram = max_ngram

    def propose(self, texts: CachedTexts, policy: DecodingPolicy, num_drafts: int) -> Draft:
        """Copy what followed the match."""
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


class ModelDraft:
    """A ``Drafter`` by a smaller causal LM with the same vocabulary; it draws where the policy draws.

    It keeps a cache of its own over the same texts. The first forward of a round reads the last two tokens, one of them
    for the second time: whether the last draft was accepted, and so read, differs by row, and two tokens cost no more
    than one. It reads more of them where rounds went by without drafts, or somebody else wrote. The model is left in
    the mode that it was in.

    Raises:
        ValueError: another vocabulary, or fewer than one token to draft.
    """

    def __init__(self, drafting: PreTrainedModel, model: MTPModel, num_drafts: int | None = None) -> None:
        self._drafting = as_mtp_model(drafting)
        self._config = self._drafting.trunk.config
        ours, theirs = model.num_tokens, self._drafting.num_tokens
        if ours != theirs:
            raise ValueError(
                f"the drafting model has {theirs} tokens and the model {ours}; drafts need one vocabulary for both."
            )
        self.max_drafts = _DEFAULT_DRAFTS if num_drafts is None else num_drafts
        if self.max_drafts < 1:
            raise ValueError(f"num_draft={self.max_drafts} must be at least 1; for none use draft='none'.")
        self._own: CachedTexts | None = None
        self._num_read: IntArray = np.zeros(0, dtype=np.int64)
        """How many of each text's first tokens this model has read, as they are now."""
        self._has_drafted = False

    def start(self, texts: CachedTexts, features: TrunkFeatures) -> None:
        """Read the prompts."""
        runner = make_runner(self._drafting)
        runner.begin(texts.capacity)
        own = CachedTexts(runner, self._config, texts.capacity, texts.device)
        own.num_cached = np.zeros(len(texts), dtype=np.int64)
        with evaluation_mode(self._drafting):
            own.forward(texts.ids[:, : int(texts.num_cached.max())])
        self._own, self._num_read, self._has_drafted = own, texts.num_cached.copy(), False

    def propose(self, texts: CachedTexts, policy: DecodingPolicy, num_drafts: int) -> Draft:
        """Run the small model once for each token."""
        own = self._own
        assert own is not None
        if num_drafts == 0:
            return Draft.empty(texts.ids)
        num_unread = max(1, int((texts.num_cached - self._num_read).max()))
        own.num_cached = np.maximum(texts.num_cached - num_unread, 0)
        counts = texts.num_cached + 1 - own.num_cached  # alike, but for rows that are shorter than what others lack
        index = torch.from_numpy(own.num_cached).to(texts.device)[:, None]
        pending = texts.ids.gather(1, index + torch.arange(int(counts.max()), device=texts.device))
        rows = torch.arange(len(texts), device=texts.device)
        tokens, distributions, views = list[Tensor](), list[Tensor](), list[Tensor]()
        for ahead in range(min(num_drafts, self.max_drafts)):
            with evaluation_mode(self._drafting):
                features = own.forward(pending, counts=None if (counts == counts[0]).all() else counts)
            hidden = features.post_norm[rows, torch.from_numpy(counts - 1).to(texts.device)][:, None]
            own.accept(counts)
            counts = np.ones_like(counts)
            processed = policy.processed(self._drafting.logits_of(hidden), texts, num_before=ahead)
            views.append(processed)
            if policy.draws:
                distributions.append(processed.log_softmax(dim=-1))
                pending = policy.choose(processed, distributions[-1])
            else:
                pending = processed.argmax(dim=-1)
            tokens.append(pending)
            texts.write(pending, after=1 + ahead)
        self._num_read, self._has_drafted = own.num_cached.copy(), True
        return Draft(
            tokens=torch.cat(tokens, dim=1),
            num_drafts=torch.full((len(texts),), len(tokens), device=texts.device),
            log_q=torch.cat(distributions, dim=1) if distributions else None,
            logits=tuple(views),
        )

    def observe(self, texts: CachedTexts, features: TrunkFeatures, num_new: IntArray) -> None:
        """Count what it has read of the texts: accepted drafts are, and tokens that it did not propose are not."""
        is_known = texts.num_cached if self._has_drafted else texts.num_cached - num_new
        self._num_read, self._has_drafted = np.minimum(self._num_read, is_known), False

    def move_rows(self, sources: IntArray, targets: IntArray, num_left: int) -> None:
        """Move the rows of its own cache; the texts are the session's."""
        assert self._own is not None
        self._num_read[targets] = self._num_read[sources]
        self._num_read = self._num_read[:num_left]
        if len(sources):
            rows = [torch.from_numpy(part).to(self._own.device) for part in (sources, targets)]
            self._own.cache.move_rows(rows[0], rows[1])


def make_drafter(
    model: MTPModel, draft: str | nn.Module | Drafter, num_draft: int | None, tree: tuple[int, ...] | None
) -> Drafter:
    """Return the drafter of that name, one by a smaller model, or the drafter that was passed.

    Raises:
        TypeError: ``draft`` is none of these.
        ValueError: an unknown name, a tree that ``draft`` cannot make, a length that would be ignored, or heads or a
            model that cannot draft so.
    """
    if tree is not None and draft != "mtp":
        raise ValueError(f"tree={list(tree)} is drafted by heads; use draft='mtp', or leave the tree out.")
    draft = without_peft_wrapper(draft)
    if isinstance(draft, PreTrainedModel):
        return ModelDraft(draft, model, num_draft)
    if not isinstance(draft, str):
        if not isinstance(draft, Drafter):
            raise TypeError(
                f"draft is a {type(draft).__name__}, expected one of {list(DRAFTS)}, a Hugging Face causal LM, or a "
                "Drafter."
            )
        if num_draft is not None:
            raise ValueError(f"num_draft={num_draft} beside a drafter, which has its length; leave num_draft out.")
        return draft
    check_choice("draft", draft, DRAFTS)
    if num_draft is not None and (tree is not None or draft == "none"):
        instead = "nothing is drafted" if tree is None else "it has a number of candidates for each token ahead"
        beside = f"draft={draft!r}" if tree is None else f"tree={list(tree)}"
        raise ValueError(f"num_draft={num_draft} beside {beside}: {instead}; leave num_draft out.")
    if draft == "mtp":
        return head_drafter(model, num_draft, tree)
    if draft == "lookup":
        if num_draft is not None and num_draft < 1:
            raise ValueError(f"num_draft={num_draft} must be at least 1; for none use draft='none'.")
        return LookupDraft() if num_draft is None else LookupDraft(num_draft)
    return NoDraft()
