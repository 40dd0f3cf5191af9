"""Studies of heads on real text: corpus, tokenizer and batches. Public names, loaded on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldmtp.studies.batches import batch_at, document_ids_at, eval_windows, window_batches
    from worldmtp.studies.byte_pair import train_tokenizer
    from worldmtp.studies.corpus import Corpus, load_corpus, split_files, stdlib_files

_MODULES = {
    "Corpus": "worldmtp.studies.corpus",
    "batch_at": "worldmtp.studies.batches",
    "document_ids_at": "worldmtp.studies.batches",
    "eval_windows": "worldmtp.studies.batches",
    "load_corpus": "worldmtp.studies.corpus",
    "split_files": "worldmtp.studies.corpus",
    "stdlib_files": "worldmtp.studies.corpus",
    "train_tokenizer": "worldmtp.studies.byte_pair",
    "window_batches": "worldmtp.studies.batches",
}

__all__ = [
    "Corpus",
    "batch_at",
    "document_ids_at",
    "eval_windows",
    "load_corpus",
    "split_files",
    "stdlib_files",
    "train_tokenizer",
    "window_batches",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
