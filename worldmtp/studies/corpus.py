"""Real text that every machine has, as tokens: the source of Python's own standard library, and its tokenizer.

Heads that look ahead need text with structure at several distances, and a study that others can repeat needs text
without a download. The standard library of the interpreter that runs is both: some nine megabytes of code and prose by
many authors, and the fingerprint says exactly which.

Split by file, never inside one: the second half of a file is far easier after its first half. Where a file goes
depends on its own path and the seed alone, so a file that comes or goes moves no other. Documents stand in an order
given by another hash, so that the first n of them are a sample and not the letter a.

The tokenizer is byte-level BPE (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; over bytes as in GPT-2, Radford
et al. 2019): the 256 bytes are tokens, so every text can be written and comes back unchanged. A vocabulary of a
thousand or two keeps the output layer of a small trunk from outweighing the trunk. It is learnt from training files
only: which byte pairs are frequent in held-out text is held-out information too. Merges are learnt from counts, ties
broken by token id, so equal documents give an equal tokenizer.

``worldmtp.stdlib_sources`` says which files those are. Left out: a search for near-copies between files, a Unicode
normal form (it would lose the round trip), and a prefix space.
"""

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from worldmtp.atomic_files import replacing, write_text
from worldmtp.stdlib_sources import stdlib_files, stdlib_root

TOKENS_FILE = "tokens.pt"
CORPUS_FILE = "corpus.json"

END_OF_DOCUMENT = "<|endoftext|>"
"""The one special token, id 0: it closes every document."""

MIN_VOCAB_SIZE = 257
"""256 bytes and the end of a document."""

_DOCUMENTS_AT_ONCE = 64  # enough for every core; an encoding holds far more than its ids


@dataclass(frozen=True)
class Corpus:
    """Tokens to learn from and tokens held out, each a chain of documents closed by the tokenizer's end token.

    ``*_starts`` are the positions of the documents' first tokens. ``fingerprint`` is what a result states: which text,
    and how it was split.
    """

    train_tokens: Int[Tensor, " train_tokens"]
    held_out_tokens: Int[Tensor, " held_out_tokens"]
    train_starts: Int[Tensor, " train_documents"]
    held_out_starts: Int[Tensor, " held_out_documents"]
    vocab_size: int
    tokenizer: PreTrainedTokenizerFast
    fingerprint: str


def load_corpus(
    *,
    vocab_size: int,
    held_out_fraction: float = 0.1,
    seed: int = 0,
    root: Path | None = None,
    max_files: int | None = None,
) -> Corpus:
    """Return the Python files under ``root``, the standard library's if None, as tokens learnt from the training part.

    ``max_files`` takes that many of them, before the split.

    Raises:
        ValueError: a limit below 1, no file at all, or none left on one side of the split.
    """
    if max_files is not None and max_files < 1:
        raise ValueError(f"max_files={max_files} must be at least 1, or None for no limit.")
    root = stdlib_root() if root is None else root
    paths = sorted(stdlib_files(root), key=lambda path: (_unit_hash("order", path, seed), path.as_posix()))
    contents = {path: (root / path).read_bytes() for path in paths[:max_files]}
    train, held_out = split_files(list(contents), held_out_fraction, seed)
    if not train or not held_out:
        raise ValueError(
            f"Of {len(contents)} files under {root}, {len(train)} are to train on and {len(held_out)} held out, and "
            "both must be there; take more files, or another held_out_fraction or seed."
        )
    train_texts, held_out_texts = ([contents[path].decode() for path in side] for side in (train, held_out))
    tokenizer = train_tokenizer(train_texts, vocab_size=vocab_size)
    train_tokens, train_starts = _chain(tokenizer, train_texts)
    held_out_tokens, held_out_starts = _chain(tokenizer, held_out_texts)
    return Corpus(
        train_tokens=train_tokens,
        held_out_tokens=held_out_tokens,
        train_starts=train_starts,
        held_out_starts=held_out_starts,
        vocab_size=vocab_size,
        tokenizer=tokenizer,
        fingerprint=(
            f"python={platform.python_version()} {_digest(contents)} held_out_files={len(held_out)} "
            f"held_out_fraction={held_out_fraction} seed={seed} vocab_size={vocab_size} "
            f"train_tokens={len(train_tokens)} held_out_tokens={len(held_out_tokens)}"
        ),
    )


def split_files(paths: Sequence[Path], held_out_fraction: float, seed: int) -> tuple[list[Path], list[Path]]:
    """Return files to train on and files held out, each in the order given.

    A file is held out when a hash of its path and the seed, read as a number in [0, 1), is below
    ``held_out_fraction``. So that fraction is expected of the files, not exact, and a larger fraction holds out the
    same files and more.

    Raises:
        ValueError: a fraction outside (0, 1), or a path that is not relative.
    """
    if not 0 < held_out_fraction < 1:
        raise ValueError(f"held_out_fraction={held_out_fraction} must lie inside (0, 1), for example 0.1.")
    for path in paths:
        if path.is_absolute():
            raise ValueError(
                f"{path} is absolute, so its side of the split would differ between machines; pass it relative to the "
                "root of its tree."
            )
    is_held_out = {path: _unit_hash("split", path, seed) < held_out_fraction for path in paths}
    return [path for path in paths if not is_held_out[path]], [path for path in paths if is_held_out[path]]


def save_tokens(directory: Path, vocab_size: int) -> None:
    """Write the corpus as tokens, ``train`` and ``held_out``, with its fingerprint, unless it is there already."""
    if (directory / TOKENS_FILE).exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    corpus = load_corpus(vocab_size=vocab_size)
    write_text(directory / CORPUS_FILE, json.dumps({"fingerprint": str(corpus.fingerprint)}))
    tokens = {
        "train": corpus.train_tokens,
        "held_out": corpus.held_out_tokens,
        "held_out_starts": corpus.held_out_starts,
    }
    with replacing(directory / TOKENS_FILE) as partial:
        torch.save(tokens, partial)


def load_tokens(directory: Path) -> dict[str, torch.Tensor]:
    """Return the tokens that ``save_tokens`` wrote, and where the held-out files start."""
    return torch.load(directory / TOKENS_FILE, weights_only=True)


def corpus_fingerprint(directory: Path) -> str:
    """Return what ``save_tokens`` read: Python's version, the split, a digest of the files."""
    return str(json.loads((directory / CORPUS_FILE).read_text(encoding="utf-8"))["fingerprint"])


def train_tokenizer(documents: Sequence[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of ``vocab_size`` tokens learnt from ``documents``.

    Raises:
        ValueError: ``vocab_size`` below 257, or too little text to learn that many tokens from.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(f"vocab_size={vocab_size} must be at least {MIN_VOCAB_SIZE}: 256 bytes and {END_OF_DOCUMENT}.")
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
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_DOCUMENT)


def encode_documents(tokenizer: PreTrainedTokenizerFast, documents: Sequence[str]) -> list[Int[Tensor, " tokens"]]:
    """Return the token ids of each document, the end-of-document token last.

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


def _unit_hash(purpose: str, path: Path, seed: int) -> float:
    """Return a number in [0, 1) that depends on its arguments alone."""
    digest = hashlib.sha256(f"{purpose}:{seed}:{path.as_posix()}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48  # 48 bits: exact in a float


def _chain(
    tokenizer: PreTrainedTokenizerFast, documents: list[str]
) -> tuple[Int[Tensor, " tokens"], Int[Tensor, " documents"]]:
    """Return the documents' tokens in a chain, and where each starts."""
    encoded = encode_documents(tokenizer, documents)
    lengths = torch.tensor([len(ids) for ids in encoded])
    return torch.cat(encoded), lengths.cumsum(dim=0) - lengths


def _digest(contents: dict[Path, bytes]) -> str:
    digest = hashlib.sha256()
    for path, content in sorted(contents.items(), key=lambda item: item[0].as_posix()):
        digest.update(f"{path.as_posix()}\n{len(content)}\n".encode())
        digest.update(content)
    total = sum(len(content) for content in contents.values())
    return f"files={len(contents)} bytes={total} sha256={digest.hexdigest()[:16]}"
