"""Real text that every machine has: the source of Python's own standard library, as tokens.

Heads that look ahead need text with structure at several distances, and a study that others can repeat needs text
without a download. The standard library of the interpreter that runs is both: some nine megabytes of code and prose by
many authors, and the fingerprint says exactly which.

Split by file, never inside one: the second half of a file is far easier after its first half. Where a file goes
depends on its own path and the seed alone, so a file that comes or goes moves no other. Documents stand in an order
given by another hash, so that the first n of them are a sample and not the letter a.

``worldmtp.stdlib_sources`` says which files those are. Not looked for: near-copies between two files.
"""

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from worldmtp.stdlib_sources import stdlib_files, stdlib_root
from worldmtp.studies.byte_pair import encode_documents, train_tokenizer


@dataclass(frozen=True)
class Corpus:
    """Tokens to learn from and tokens held out, each a chain of documents closed by the tokenizer's end token.

    ``*_starts`` are the positions of the documents' first tokens; ``*_bytes`` count the text behind the tokens, for
    losses in bits per byte. ``fingerprint`` is what a result states: which text, how split, how shortened.
    """

    train_tokens: Int[Tensor, " train_tokens"]
    held_out_tokens: Int[Tensor, " held_out_tokens"]
    train_starts: Int[Tensor, " train_documents"]
    held_out_starts: Int[Tensor, " held_out_documents"]
    train_bytes: int
    held_out_bytes: int
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
    max_tokens: int | None = None,
    cache_dir: Path | None = None,
) -> Corpus:
    """The Python files under ``root``, the standard library's if None, as tokens learnt from their training part.

    ``max_files`` takes that many of them, before the split. ``max_tokens`` cuts train and held-out tokens to that
    length each, after the tokenizer was learnt; a document that is cut has no end token. ``cache_dir`` keeps the
    tokenizer.

    Raises:
        ValueError: a limit below 1, no file at all, or none left on one side of the split.
    """
    for name, limit in (("max_files", max_files), ("max_tokens", max_tokens)):
        if limit is not None and limit < 1:
            raise ValueError(f"{name}={limit} must be at least 1, or None for no limit.")
    root = stdlib_root() if root is None else root
    paths = sorted(stdlib_files(root), key=lambda path: (_unit_hash("order", path, seed), path.as_posix()))
    contents = {path: (root / path).read_bytes() for path in paths[:max_files]}
    train, held_out = split_files(list(contents), held_out_fraction, seed)
    if not train or not held_out:
        raise ValueError(
            f"Of {len(contents)} files under {root}, {len(train)} are to train on and {len(held_out)} held out, and "
            "both must be there; take more files, or another held_out_fraction or seed."
        )
    texts = {path: content.decode() for path, content in contents.items()}
    tokenizer = train_tokenizer([texts[path] for path in train], vocab_size=vocab_size, cache_dir=cache_dir)
    train_tokens, train_starts, train_bytes = _chain(tokenizer, [texts[path] for path in train], max_tokens)
    held_out_tokens, held_out_starts, held_out_bytes = _chain(tokenizer, [texts[path] for path in held_out], max_tokens)
    return Corpus(
        train_tokens=train_tokens,
        held_out_tokens=held_out_tokens,
        train_starts=train_starts,
        held_out_starts=held_out_starts,
        train_bytes=train_bytes,
        held_out_bytes=held_out_bytes,
        vocab_size=vocab_size,
        tokenizer=tokenizer,
        fingerprint=(
            f"python={platform.python_version()} {_digest(contents)} held_out_files={len(held_out)} "
            f"held_out_fraction={held_out_fraction} seed={seed} vocab_size={vocab_size} "
            f"train_tokens={len(train_tokens)} held_out_tokens={len(held_out_tokens)}"
        ),
    )


def split_files(paths: Sequence[Path], held_out_fraction: float, seed: int) -> tuple[list[Path], list[Path]]:
    """Files to train on and files held out, each in the order given.

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


def _unit_hash(purpose: str, path: Path, seed: int) -> float:
    """A number in [0, 1) that depends on its arguments alone."""
    digest = hashlib.sha256(f"{purpose}:{seed}:{path.as_posix()}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48  # 48 bits: exact in a float


def _chain(
    tokenizer: PreTrainedTokenizerFast, documents: list[str], max_tokens: int | None
) -> tuple[Int[Tensor, " tokens"], Int[Tensor, " documents"], int]:
    """The documents' tokens one after another, where each starts, and the bytes of text they stand for."""
    encoded = encode_documents(tokenizer, documents)
    lengths = torch.tensor([len(ids) for ids in encoded])
    starts = lengths.cumsum(dim=0) - lengths
    tokens = torch.cat(encoded)
    num_bytes = sum(len(document.encode()) for document in documents)
    if max_tokens is not None and max_tokens < len(tokens):
        tokens = tokens[:max_tokens].clone()  # not a view: it would keep the rest alive
        starts = starts[starts < max_tokens]
        last = int(starts[-1])
        whole = sum(len(document.encode()) for document in documents[: len(starts) - 1])
        num_bytes = whole + _num_bytes(tokenizer, tokens[last:].tolist())
    return tokens, starts, num_bytes


def _num_bytes(tokenizer: PreTrainedTokenizerFast, token_ids: list[int]) -> int:
    """Bytes of a document's first tokens: a byte-level token is spelt with one character for each of its bytes."""
    spelt = tokenizer.convert_ids_to_tokens(token_ids)
    return sum(len(token) for token in spelt if token != tokenizer.eos_token)


def _digest(contents: dict[Path, bytes]) -> str:
    digest = hashlib.sha256()
    for path, content in sorted(contents.items(), key=lambda item: item[0].as_posix()):
        digest.update(f"{path.as_posix()}\n{len(content)}\n".encode())
        digest.update(content)
    total = sum(len(content) for content in contents.values())
    return f"files={len(contents)} bytes={total} sha256={digest.hexdigest()[:16]}"
