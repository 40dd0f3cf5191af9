"""Drafters and runners by name."""

from transformers import PreTrainedModel

from worldmtp.choices import check_choice
from worldmtp.decoding.drafts import Drafter, LookupDraft, NoDraft
from worldmtp.decoding.head_drafts import head_drafter
from worldmtp.decoding.lean import lean_runner
from worldmtp.decoding.trunk import HuggingFaceRunner, TrunkRunner
from worldmtp.model import MTPModel

DRAFTS = ("mtp", "lookup", "none")
_LOOKUP_DRAFTS = 4


def make_drafter(
    model: MTPModel, draft: str | PreTrainedModel | Drafter, num_draft: int | None, tree: tuple[int, ...] | None
) -> Drafter:
    """The drafter of that name, of a smaller model, or the one given.

    Raises:
        ValueError: no such name, a tree of what drafts none, or heads or a model that cannot draft so.
    """
    if tree is not None and draft != "mtp":
        raise ValueError(f"tree={list(tree)} is drafted by heads; use draft='mtp', or leave the tree out.")
    if isinstance(draft, PreTrainedModel):
        from worldmtp.decoding.model_draft import ModelDraft

        return ModelDraft(draft, model, num_draft)
    if not isinstance(draft, str):
        return draft
    check_choice("draft", draft, DRAFTS)
    if draft == "mtp":
        return head_drafter(model, num_draft, tree)
    if draft == "lookup":
        return LookupDraft(_LOOKUP_DRAFTS if num_draft is None else num_draft)
    return NoDraft()


def make_runner(model: MTPModel) -> TrunkRunner:
    """A lean forward where the trunk's is known by heart, else its own."""
    return lean_runner(model) or HuggingFaceRunner(model)
