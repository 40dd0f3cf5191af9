"""Drafts by the MTP heads: depth k proposes the token k after the root, whose next token the trunk has chosen.

A draft of g tokens runs depths 2 .. g + 1. What a drafter keeps of the text depends on what its heads attend to, so
``head_drafter`` has three:

    ``RootDraft``    nothing but the root (latent, Hydra, Medusa, ...): one carry a row
    ``ChainDraft``   the same depth at earlier positions (DeepSeek-V3; Gloeckle, without tokens)
    ``BranchDraft``  depth 2 at earlier positions, and the branch (EAGLE)

The heads are the model's own modules, read at each call: drafts follow training at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.decoding.acceptance import Draft, Tree
from worldmtp.decoding.cache import CachedTexts, IntArray, SlotCache, move_rows
from worldmtp.decoding.sampling import DecodingPolicy
from worldmtp.heads.base import ActionConditionalHead
from worldmtp.heads.registry import available_heads, head_class
from worldmtp.model import MTPModel
from worldmtp.model.trunk import TrunkFeatures


def can_draft(model: MTPModel) -> bool:
    """Return whether the model has heads that predict consecutive tokens."""
    return model.config.depth > 1 and model.config.stride == 1


def head_drafter(model: MTPModel, num_drafts: int | None = None, widths: tuple[int, ...] | None = None) -> "HeadDraft":
    """Return the drafter for the model's heads: a chain of ``num_drafts`` tokens, K - 1 by default.

    ``widths`` makes it a tree with so many candidates at each depth; only the most likely one is followed further.

    Raises:
        ValueError: the model has no heads, they skip tokens, or they cannot draft as far.
    """
    config, heads = model.config, model.heads
    if config.depth < 2:
        raise ValueError("the model has depth=1, so no heads to draft with; use draft='none' or 'lookup'.")
    if config.stride != 1:
        raise ValueError(f"stride={config.stride}: these heads leap over tokens; drafting needs stride=1.")
    if widths is not None and (not widths or min(widths) < 1):
        raise ValueError(f"widths={widths} must be counts of at least 1, one for each depth.")
    if widths is not None:
        _check_vocabulary(model, widths)
    wanted = len(widths) if widths is not None else config.depth - 1 if num_drafts is None else num_drafts
    if wanted < 1 or (wanted > config.depth - 1 and not _is_unbounded(model)):
        raise ValueError(
            f"num_draft={wanted}, but heads of depth={config.depth} draft 1 to {config.depth - 1} tokens; choose one, "
            "or train deeper heads."
        )
    kinds: dict[str, type[HeadDraft]] = {"none": RootDraft, "depth": ChainDraft, "branch": BranchDraft}
    return kinds[heads.attention](model, wanted, widths)


def check_beam_heads(model: MTPModel, widths: tuple[int, ...]) -> None:
    """Raise if the heads cannot fill a whole tree of so many candidates at depths 1, 2, ..; depth 1 is the trunk's own.

    Raises:
        ValueError: a width above the vocabulary, heads that skip tokens, or more widths than depths.
        TypeError: heads whose depths attend to earlier positions.
    """
    config, heads = model.config, model.heads
    _check_vocabulary(model, widths)
    if len(widths) == 1:
        return
    if config.stride != 1:
        raise ValueError(f"stride={config.stride}: these heads leap over tokens; a beam of them needs stride=1.")
    if len(widths) > config.depth and not _is_unbounded(model):
        raise ValueError(
            f"widths={widths} are of {len(widths)} depths and the model has depth={config.depth}; leave some out, or "
            "train deeper heads."
        )
    if heads.attention != "none":
        able = [name for name in available_heads() if head_class(name).attention == "none"]
        raise TypeError(
            f"{type(heads).__name__} attends to earlier positions, so every candidate path would need keys of its own; "
            f"parallel_beam takes the families {able}, or a single width, which needs no heads."
        )


def _check_vocabulary(model: MTPModel, widths: tuple[int, ...]) -> None:
    if max(widths) > model.num_tokens:
        raise ValueError(
            f"widths={widths} ask for {max(widths)} tokens of a vocabulary of {model.num_tokens}; lower them."
        )


def _is_unbounded(model: MTPModel) -> bool:
    """Return whether one step of the heads serves every depth."""
    return isinstance(model.heads, ActionConditionalHead) and model.heads.unbounded


class HeadDraft(ABC):
    """The loop that the three share: a depth's logits become tokens, and those the next depth's input."""

    def __init__(self, model: MTPModel, num_drafts: int, widths: tuple[int, ...] | None) -> None:
        self._model = model
        self._heads = model.heads
        self._widths = widths
        self._num_depths = num_drafts
        self.max_drafts = num_drafts if widths is None else sum(widths)
        self.max_depth = num_drafts

    @abstractmethod
    def start(self, texts: CachedTexts, features: TrunkFeatures) -> None:
        """Do what ``Drafter`` says."""

    @abstractmethod
    def observe(self, texts: CachedTexts, features: TrunkFeatures, num_new: IntArray) -> None:
        """Do what ``Drafter`` says."""

    @abstractmethod
    def move_rows(self, sources: IntArray, targets: IntArray, num_left: int) -> None:
        """Do what ``Drafter`` says."""

    @abstractmethod
    def _latents(self, texts: CachedTexts, num_depths: int) -> Generator[Tensor, Tensor, None]:
        """Yield the latents of depths 2, 3, .. at the roots, (row, 1, hidden); receive the tokens of each, (row, 1)."""

    def propose(self, texts: CachedTexts, policy: DecodingPolicy, num_drafts: int) -> Draft:
        """Do what ``Drafter`` says."""
        num_depths = min(num_drafts, self._num_depths)
        if num_depths == 0:
            return Draft.empty(texts.ids)
        tokens, distributions, views = list[Tensor](), list[Tensor](), list[Tensor]()
        parents, best = [-1], 0
        deepest: int = self._model.config.depth
        latents = self._latents(texts, num_depths)
        latent = next(latents)
        for ahead in range(num_depths):
            logits = self._model.logits_of(latent, min(ahead + 2, deepest))
            processed = policy.processed(logits, texts, num_before=ahead)
            views.append(processed)
            if self._widths is not None:
                chosen = processed[:, 0].topk(self._widths[ahead], dim=-1).indices
                best, parents = len(parents), parents + [best] * chosen.shape[1]
            elif policy.draws:
                distributions.append(processed.log_softmax(dim=-1))
                chosen = policy.choose(processed, distributions[-1])
            else:
                chosen = processed.argmax(dim=-1)
            tokens.append(chosen)
            if policy.sampling.reads_context:
                texts.write(chosen[:, :1], after=1 + ahead)
            if ahead + 1 < num_depths:
                latent = latents.send(chosen[:, :1])
        return Draft(
            tokens=torch.cat(tokens, dim=1),
            num_drafts=torch.full((len(texts),), num_depths, device=texts.device),
            log_q=torch.cat(distributions, dim=1) if distributions else None,
            tree=None if self._widths is None else Tree(tuple(parents)),
            logits=tuple(views),
        )


class RootDraft(HeadDraft):
    """Drafts by heads without attention: nothing is kept of a row but its root's carry."""

    _root: Float[Tensor, "row 1 width"]

    def start(self, texts: CachedTexts, features: TrunkFeatures) -> None:
        """Make the prompts' last tokens the roots."""
        self.observe(texts, features, texts.num_cached)

    def observe(self, texts: CachedTexts, features: TrunkFeatures, num_new: IntArray) -> None:
        """Make the last accepted token the root."""
        last = torch.from_numpy(np.maximum(num_new - 1, 0)).to(texts.device)
        rows = torch.arange(len(last), device=texts.device)
        root = self._heads.begin(features.map(lambda hidden: hidden[rows, last][:, None]))
        stays = num_new == 0
        if stays.any():
            root = torch.where(torch.from_numpy(stays).to(texts.device)[:, None, None], self._root, root)
        self._root = root

    def move_rows(self, sources: IntArray, targets: IntArray, num_left: int) -> None:
        """Move roots with their rows."""
        self._root = move_rows(self._root, sources, targets, num_left)

    def _latents(self, texts: CachedTexts, num_depths: int) -> Generator[Tensor, Tensor, None]:
        heads = self._heads
        itself = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=texts.device)
        newest = torch.from_numpy(texts.num_cached).to(texts.device)[:, None]
        root, carry, tokens = newest - 1, self._root, texts.ids.gather(1, newest)
        for ahead in range(num_depths):
            depth = min(ahead + 2, self._model.config.depth)
            if isinstance(heads, ActionConditionalHead):
                carry = heads.forward_depth(depth, carry, self._model.embed(tokens), itself, root)
                tokens = yield heads.read(depth, carry)
            else:
                yield heads.forward_depth(depth, carry, itself, root)


class WindowedDraft(HeadDraft):
    """Drafts by heads with attention: each depth's keys in slots, as the trunk's, and depth 2's input by position.

    A round runs depth k over a *window*, each row's last positions up to its root: those that are new since that depth
    last ran, and those whose keys were made from drafts. Slot 0 takes what a window holds before a text begins.
    """

    _stale_per_depth: int
    """How many positions before the root each further depth must run again, as their keys were made from drafts."""

    def __init__(self, model: MTPModel, num_drafts: int, widths: tuple[int, ...] | None) -> None:
        super().__init__(model, num_drafts, widths)
        self._carries = torch.zeros(0)
        self._caches: list[SlotCache] = []
        self._num_new: list[int] = []

    @abstractmethod
    def _num_caches(self) -> int:
        """Return how many depths keep keys."""

    def start(self, texts: CachedTexts, features: TrunkFeatures) -> None:
        """Run every depth over the prompts; what would read past them runs again with the first draft."""
        carry = self._heads.begin(features)
        num_rows, length, width = carry.shape
        capacity = 1 + texts.capacity
        self._carries = carry.new_zeros((num_rows, capacity, width))
        self._carries[:, 1 : 1 + length] = carry
        self._caches = [SlotCache(1, capacity) for _ in range(self._num_caches())]
        start = torch.zeros(num_rows, dtype=torch.long, device=texts.device)
        for _ in self._window_carries(texts, start, length, self._num_caches()):
            pass
        self._num_new = [1] * len(self._caches)  # the root, whose next token was not there yet

    def observe(self, texts: CachedTexts, features: TrunkFeatures, num_new: IntArray) -> None:
        """Keep depth 2's input at the accepted tokens; what follows them is overwritten in the next round."""
        carry = self._heads.begin(features)
        start = torch.from_numpy(texts.num_cached - num_new).to(texts.device)
        slots = 1 + start[:, None] + torch.arange(carry.shape[1], device=texts.device)
        slots = slots.clamp_max(self._carries.shape[1] - 1)  # of padding, where somebody else wrote more to other rows
        self._carries.scatter_(1, slots[..., None].expand_as(carry), carry)
        self._num_new = [waiting + int(num_new.max()) for waiting in self._num_new]

    def move_rows(self, sources: IntArray, targets: IntArray, num_left: int) -> None:
        """Move keys and carries with their rows."""
        self._carries = move_rows(self._carries, sources, targets, num_left)
        if len(sources):
            rows = [torch.from_numpy(part).to(self._carries.device) for part in (sources, targets)]
            for cache in self._caches:
                cache.move_rows(rows[0], rows[1])

    def _window(self, texts: CachedTexts, num_depths: int) -> Iterator[Float[Tensor, "row query width"]]:
        """Yield the carries of depths 2, 3, .. over all positions that one of them lacks; the root is the last."""
        length = max(self._num_new[:num_depths]) + self._stale_per_depth * (num_depths - 1)
        self._num_new[:num_depths] = [0] * num_depths
        start = torch.from_numpy(texts.num_cached - length).to(texts.device)
        return self._window_carries(texts, start, length, num_depths)

    def _window_carries(
        self, texts: CachedTexts, start: Int[Tensor, " row"], length: int, num_depths: int
    ) -> Iterator[Float[Tensor, "row query width"]]:
        """Yield carries, or latents of parallel heads, over a window that may start before the text; keep keys."""
        heads = self._heads
        positions = start[:, None] + torch.arange(length, device=texts.device)
        slots, real = (positions + 1).clamp_min(0), positions.clamp_min(0)
        extent = int(slots[:, -1].max()) + 1
        keys = torch.arange(extent, device=texts.device)
        allowed = (keys <= slots[..., None]) & (keys >= 1) | (keys == slots[..., None])
        carry = self._carries.gather(1, slots[..., None].expand(-1, -1, self._carries.shape[2]))
        for depth in range(2, 2 + num_depths):
            cache = self._caches[depth - 2]
            cache.write_at(slots, extent)
            if isinstance(heads, ActionConditionalHead):
                ahead = (real + depth - 1).clamp_max(texts.capacity - 1)
                embeds = self._model.embed(texts.ids.gather(1, ahead))
                carry = heads.forward_depth(depth, carry, embeds, allowed[:, None], real, cache)
                yield carry
            else:
                yield heads.forward_depth(depth, carry, allowed[:, None], real, cache)


class ChainDraft(WindowedDraft):
    """Each depth attends to its own keys; depth k's last k - 2 before the root, and the root's, read drafts."""

    def __init__(self, model: MTPModel, num_drafts: int, widths: tuple[int, ...] | None) -> None:
        super().__init__(model, num_drafts, widths)
        reads_tokens = isinstance(model.heads, ActionConditionalHead)
        self._stale_per_depth = 1 if reads_tokens else 0

    def _num_caches(self) -> int:
        return self._num_depths

    def _latents(self, texts: CachedTexts, num_depths: int) -> Generator[Tensor, Tensor, None]:
        heads = self._heads
        for ahead, carry in enumerate(self._window(texts, num_depths)):
            last = carry[:, -1:]
            tokens = yield heads.read(ahead + 2, last) if isinstance(heads, ActionConditionalHead) else last
            texts.write(tokens, after=1 + ahead)  # which the next depth's window reads


class BranchDraft(WindowedDraft):
    """Depth 2 keeps keys of the text; a later depth is one more query, after the branch's own keys."""

    _stale_per_depth = 0

    def _num_caches(self) -> int:
        return 1

    def _latents(self, texts: CachedTexts, num_depths: int) -> Generator[Tensor, Tensor, None]:
        heads = self._heads
        assert isinstance(heads, ActionConditionalHead)
        (window,) = self._window(texts, 1)
        carry = window[:, -1:]
        tokens = yield heads.read(2, carry)
        newest = torch.from_numpy(texts.num_cached).to(texts.device)[:, None]
        for ahead in range(1, num_depths):
            depth = min(ahead + 2, self._model.config.depth)
            slots = newest + ahead
            extent = int(slots.max()) + 1
            keys = torch.arange(extent, device=texts.device)
            allowed = (keys <= slots[..., None]) & (keys >= 1)
            self._caches[0].write_at(slots, extent)
            carry = heads.forward_depth(
                depth, carry, self._model.embed(tokens), allowed[:, None], newest - 1, self._caches[0]
            )
            tokens = yield heads.read(depth, carry)
