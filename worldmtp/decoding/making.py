"""Drafters by name."""

from collections.abc import Iterable
from typing import SupportsIndex

from torch import nn
from transformers import PreTrainedModel

from worldmtp.choices import check_choice
from worldmtp.decoding.drafts import Drafter, LookupDraft, NoDraft
from worldmtp.decoding.head_drafts import head_drafter
from worldmtp.decoding.integers import as_integer
from worldmtp.decoding.model_draft import ModelDraft
from worldmtp.model import MTPModel
from worldmtp.model.adapters import without_peft_wrapper

DRAFTS = ("mtp", "lookup", "none")
_LOOKUP_DRAFTS = 4


def make_drafter(
    model: MTPModel, draft: str | nn.Module | Drafter, num_draft: int | None, tree: tuple[int, ...] | None
) -> Drafter:
    """The drafter of that name, of a smaller model, or the one given.

    Raises:
        TypeError: what is to draft is none of these.
        ValueError: no such name, a tree of what drafts none, a length that would be ignored, or heads or a model that
            cannot draft so.
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
        return LookupDraft(_LOOKUP_DRAFTS if num_draft is None else num_draft)
    return NoDraft()


def as_widths(name: str, widths: Iterable[SupportsIndex] | None) -> tuple[int, ...] | None:
    """Numbers of candidates as Python's integers; None stays None.

    Raises:
        TypeError: one is no integer.
    """
    if widths is None:
        return None
    return tuple(as_integer(f"{name}[{index}]", width) for index, width in enumerate(widths))
