"""Studies: comparisons that train many small models on real text or graphs. Public names are loaded on first use."""

from typing import TYPE_CHECKING

from worldmtp.lazy import lazy_exports

if TYPE_CHECKING:
    from worldmtp.studies.batches import batch_at as batch_at
    from worldmtp.studies.batches import document_ids_at as document_ids_at
    from worldmtp.studies.batches import eval_windows as eval_windows
    from worldmtp.studies.corpus import Corpus as Corpus
    from worldmtp.studies.corpus import load_corpus as load_corpus
    from worldmtp.studies.corpus import split_files as split_files
    from worldmtp.studies.corpus import stdlib_files as stdlib_files
    from worldmtp.studies.corpus import train_tokenizer as train_tokenizer

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "batches": "batch_at document_ids_at eval_windows",
        "corpus": "Corpus load_corpus split_files stdlib_files train_tokenizer",
    },
)
