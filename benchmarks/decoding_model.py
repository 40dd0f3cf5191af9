"""The model that decoding is measured with: trained once, kept, in under forty minutes on two cores.

    python benchmarks/decoding_model.py
    python benchmarks/decoding_model.py --head sequential --directory runs/decoding_sequential

A Llama of 12 layers, 256 wide, two key-value heads for four of queries, on the Python standard library's own sources
(byte pairs, split by file), with heads to depth 6. Three stages, each kept when it is done, so that a run that was
killed goes on with the next:

    trunk    next tokens of the corpus, and the heads beside it: their losses reach the trunk
    texts    the trunk continues prompts of the training files, greedily and by sampling
    heads    on three parts of those texts and one of the corpus, against the trunk's own distribution (KL); the trunk
             is frozen. Heads are to say what the trunk will say, and that is its text (FastMTP, arXiv 2509.18362)

``benchmarks/decoding_speed.py`` and ``benchmarks/decoding_acceptance.py`` read what this leaves.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from worldmtp.decoding import generate
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.model.global_draws import global_draws_from
from worldmtp.objective import MTPObjective
from worldmtp.studies.batches import batch_at
from worldmtp.studies.corpus import corpus_fingerprint, load_tokens, save_tokens
from worldmtp.studies.densification import held_out
from worldmtp.studies.training import Batch, StepLosses, TrainingConfig, train

VOCAB_SIZE = 1024
LENGTH = 128
BATCH_SIZE = 16
PROMPT = 32
JOINT = {"coef": {"start": 0.3}, "terms": {"ce": 1.0, "latent": 1.0}}
DISTILLED = {"coef": {"start": 1.0}, "terms": {"ce": 0.0, "kl": 1.0}, "depth_weighting": "uniform"}


def fresh_trunk(num_key_value_heads: int = 2) -> LlamaForCausalLM:
    """The trunk, random; no token ends a text."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=num_key_value_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    with global_draws_from(0):
        return LlamaForCausalLM(config)


def progress(num_steps: int) -> Callable[[StepLosses], None]:
    """A line now and then, with the time that is left."""
    begin = time.perf_counter()

    def show(losses: StepLosses) -> None:
        done = losses.step + 1
        if done % 20 == 0 or done == num_steps:
            left = (time.perf_counter() - begin) / done * (num_steps - done)
            later = " ".join(f"{depth}:{loss:.2f}" for depth, loss in losses.later.items())
            print(f"{done}/{num_steps} loss {losses.next_token:.3f} {later} {left / 60:.1f} min left", flush=True)

    return show


def train_trunk(directory: Path, args: argparse.Namespace) -> dict[str, float]:
    """The first stage."""
    tokens = load_tokens(directory)
    heads = MTPConfig(head=args.head, depth=args.depth)
    model = MTPModel.from_trunk(fresh_trunk(args.key_value_heads), heads, torch.Generator().manual_seed(0))

    def batch_of(step: int) -> Batch:
        ids = batch_at(tokens["train"], LENGTH, BATCH_SIZE, 0, step)
        return Batch(ids, ids)

    settings = TrainingConfig(num_steps=args.trunk_steps, learning_rate=2e-3, warmup_steps=args.trunk_steps // 10)
    train(model, batch_of, MTPObjective.from_dict(JOINT), settings, progress(args.trunk_steps))
    model.save_pretrained(directory / "joint")
    held = tokens["held_out"][: len(tokens["held_out"]) // LENGTH * LENGTH].view(-1, LENGTH)[::8]
    return held_out(model, held)


def write_texts(directory: Path, args: argparse.Namespace) -> None:
    """The second stage: half of the rows greedily, half sampled at temperature 1."""
    tokens = load_tokens(directory)["train"]
    model = MTPModel.from_pretrained(directory / "joint")
    texts = []
    for number in range(args.text_batches):
        prompts = batch_at(tokens, PROMPT, 64, 1, number)
        options: dict[str, Any] = (
            {"do_sample": True, "generator": torch.Generator().manual_seed(number)} if number % 2 else {}
        )
        is_real = torch.ones_like(prompts)  # a token of the corpus may be 0, which pads elsewhere
        output = generate(model, prompts, is_real, max_new_tokens=LENGTH - PROMPT, draft="mtp", **options)
        texts.append(output.sequences)
        print(f"texts: {number + 1}/{args.text_batches}", flush=True)
    torch.save(torch.cat(texts), directory / "texts.pt")


def train_heads(directory: Path, args: argparse.Namespace) -> None:
    """The third stage."""
    tokens, texts = load_tokens(directory)["train"], torch.load(directory / "texts.pt", weights_only=True)
    model = MTPModel.from_pretrained(directory / "joint")
    model.config.detach_trunk = model.config.detach_embedding = model.config.detach_lm_head = True

    def batch_of(step: int) -> Batch:
        num_own = BATCH_SIZE * 3 // 4
        own = texts[torch.randint(len(texts), (num_own,), generator=torch.Generator().manual_seed(step))]
        ids = torch.cat([batch_at(tokens, LENGTH, BATCH_SIZE - num_own, 2, step), own])
        return Batch(ids, ids)

    settings = TrainingConfig(num_steps=args.head_steps, learning_rate=2e-3, trains_trunk=False)
    train(model, batch_of, MTPObjective.from_dict(DISTILLED), settings, progress(args.head_steps))
    model.save_pretrained(directory / "model")


def main() -> None:
    """Run the stages that are not there yet, and say what was trained on what."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("runs/decoding_model"))
    parser.add_argument("--head", default="latent")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--key-value-heads", type=int, default=2)
    parser.add_argument("--trunk-steps", type=int, default=1000)
    parser.add_argument("--text-batches", type=int, default=64)
    parser.add_argument("--head-steps", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    directory: Path = args.directory
    directory.mkdir(parents=True, exist_ok=True)
    account = directory / "account.json"
    begin = time.perf_counter()
    save_tokens(directory, VOCAB_SIZE)
    if not (directory / "joint" / "config.json").exists():
        measured = train_trunk(directory, args)
        facts = {name: value for name, value in vars(args).items() if name != "directory"}
        account.write_text(json.dumps({**facts, "held_out": measured, "corpus": corpus_fingerprint(directory)}))
    if not (directory / "texts.pt").exists():
        write_texts(directory, args)
    if not (directory / "model" / "config.json").exists():
        train_heads(directory, args)
    print(account.read_text())
    print(f"{(time.perf_counter() - begin) / 60:.1f} minutes with {args.threads} threads")


if __name__ == "__main__":
    main()
