"""What studies on the real-text corpus share: its tokens on disk, a trunk from scratch, a line of progress."""

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from worldmtp.atomic_files import replacing, write_text
from worldmtp.studies.corpus import load_corpus
from worldmtp.studies.training import StepLosses

TOKENS_FILE = "tokens.pt"
CORPUS_FILE = "corpus.json"


def save_tokens(directory: Path, vocab_size: int) -> None:
    """The corpus as tokens, ``train`` and ``held_out``, where the latter's files start, and what it was.

    What is there already is not made again.
    """
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
    """What ``save_tokens`` left."""
    return torch.load(directory / TOKENS_FILE, weights_only=True)


def corpus_fingerprint(directory: Path) -> str:
    """What ``save_tokens`` read: Python's version, the split, a digest of the files."""
    return str(json.loads((directory / CORPUS_FILE).read_text(encoding="utf-8"))["fingerprint"])


def fresh_llama(
    *,
    vocab_size: int,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    num_attention_heads: int,
    max_tokens: int,
    seed: int,
) -> LlamaForCausalLM:
    """A small Llama with tied embeddings; its weights are drawn from the seed, the global generator is put back."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_attention_heads,
        max_position_embeddings=max_tokens,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return LlamaForCausalLM(config)


def progress_line(losses: StepLosses) -> str:
    """The losses of a step, next token first."""
    later = " ".join(f"{depth}:{loss:.2f}" for depth, loss in losses.later.items())
    return f"loss {losses.next_token:.2f} {later}".rstrip()
