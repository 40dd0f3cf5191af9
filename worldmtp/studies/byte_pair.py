"""A byte-pair tokenizer of a small vocabulary, learnt from the documents it is given.

Byte-level BPE (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; over bytes as in GPT-2, Radford et al. 2019):
the 256 bytes are tokens, so every text can be written and comes back unchanged. A vocabulary of a thousand or two keeps
the output layer of a small trunk from outweighing the trunk. The text is cut by GPT-2's pattern first, so no token
crosses from a word into the next, and one token may hold a whole indentation.

Learnt from training files only, and from all of them: which byte pairs are frequent in held-out text is held-out
information too. Merges are learnt from counts, ties broken by token id, so equal documents give an equal tokenizer.

Left out: a Unicode normal form (it would lose the round trip), a prefix space, and a limit on the text that merges are
learnt from: ten megabytes take seconds.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from worldmtp.atomic_files import write_text

END_OF_DOCUMENT = "<|endoftext|>"
"""The one special token, id 0: it closes every document."""

MIN_VOCAB_SIZE = 257
"""256 bytes and the end of a document."""

_RECIPE = 1  # part of a cached file's name: raise it where the steps below change what is learnt
_DOCUMENTS_AT_ONCE = 64  # enough for every core; an encoding holds far more than its ids


def train_tokenizer(
    documents: Sequence[str], *, vocab_size: int, cache_dir: Path | None = None
) -> PreTrainedTokenizerFast:
    """The tokenizer of ``vocab_size`` tokens learnt from ``documents``, or the same one read from ``cache_dir``.

    A cached file is named by a hash of all that it was learnt from, so it cannot be taken for another's.

    Raises:
        ValueError: ``vocab_size`` below 257; too little text to learn that many tokens from; or a cached file that
            is not JSON.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(f"vocab_size={vocab_size} must be at least {MIN_VOCAB_SIZE}: 256 bytes and {END_OF_DOCUMENT}.")
    cached = None if cache_dir is None else cache_dir / _file_name(documents, vocab_size)
    if cached is not None and cached.exists():
        return _wrapped(_read(cached))
    learnt = _learn(documents, vocab_size)
    if cached is not None:
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_text(cached, learnt.to_str())
    return _wrapped(learnt)


def encode_documents(tokenizer: PreTrainedTokenizerFast, documents: Sequence[str]) -> list[Int[Tensor, " tokens"]]:
    """Token ids of each document, the end-of-document token last.

    Raises:
        ValueError: a document spells the end-of-document token out, which would read as two documents.
    """
    for index, document in enumerate(documents):
        if END_OF_DOCUMENT in document:
            raise ValueError(
                f"Document {index} holds the text {END_OF_DOCUMENT!r}, which marks the end of a document; leave that "
                "document out."
            )
    backend = tokenizer.backend_tokenizer
    end = backend.token_to_id(END_OF_DOCUMENT)
    tokens = []
    for first in range(0, len(documents), _DOCUMENTS_AT_ONCE):
        encodings = backend.encode_batch(list(documents[first : first + _DOCUMENTS_AT_ONCE]), add_special_tokens=False)
        tokens += [torch.tensor([*encoding.ids, end]) for encoding in encodings]
    return tokens


def _learn(documents: Sequence[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    found = tokenizer.get_vocab_size()
    if found != vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size}, but the {len(documents)} documents give {found} tokens; lower it to {found} or "
            "pass more text."
        )
    return tokenizer


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_DOCUMENT)


def _file_name(documents: Sequence[str], vocab_size: int) -> str:
    digest = hashlib.sha256(f"{_RECIPE} {tokenizers.__version__}".encode())
    for document in documents:
        content = document.encode()
        digest.update(f"\n{len(content)}\n".encode())
        digest.update(content)
    return f"byte_pair-{vocab_size}-{digest.hexdigest()[:16]}.json"


def _read(path: Path) -> Tokenizer:
    text = path.read_text(encoding="utf-8")
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a tokenizer's JSON ({error}); delete it, it is made anew.") from error
    return Tokenizer.from_str(text)
