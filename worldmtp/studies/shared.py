"""What studies on the real-text corpus share: its tokens on disk, a trunk from scratch, a line of progress."""

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from worldmtp.studies.corpus import load_corpus
from worldmtp.studies.training import StepLosses

TOKENS_FILE = "tokens.pt"


def save_tokens(directory: Path, vocab_size: int) -> None:
    """The corpus as tokens, ``train`` and ``held_out``, and what it was; what is there already is not made again."""
    if (directory / TOKENS_FILE).exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    corpus = load_corpus(vocab_size=vocab_size)
    (directory / "corpus.json").write_text(json.dumps({"fingerprint": str(corpus.fingerprint)}), encoding="utf-8")
    partial = directory / f"{TOKENS_FILE}.partial"
    torch.save({"train": corpus.train_tokens, "held_out": corpus.held_out_tokens}, partial)
    partial.rename(directory / TOKENS_FILE)  # whole where it exists


def load_tokens(directory: Path) -> dict[str, torch.Tensor]:
    """What ``save_tokens`` left."""
    return torch.load(directory / TOKENS_FILE, weights_only=True)


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
