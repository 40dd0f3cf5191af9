"""What ``worldmtp generate`` does once it knows the model's directory and the prompts: load, decode, print, account."""

import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from worldmtp.cli.explained import Marks, show_explanation, show_side_by_side
from worldmtp.cli.generate_config import AUTO, GenerateConfig
from worldmtp.cli.prompts import decode_text, encode_prompts
from worldmtp.decoding import SamplingConfig, generate
from worldmtp.decoding.adaptive import LengthChooser, length_chooser
from worldmtp.decoding.drafts import Drafter
from worldmtp.decoding.explain import Explanation, explain
from worldmtp.decoding.head_drafts import can_draft
from worldmtp.decoding.making import make_drafter
from worldmtp.decoding.slot_cache import cache_size
from worldmtp.decoding.trunk import as_mtp_model
from worldmtp.model import MTPModel
from worldmtp.training.make import checked_device
from worldmtp.training.saved_model import load_any_model, load_tokenizer

DEFAULT_NEW_TOKENS = 64
_WIDEST_FIRST = 3
"""Candidates for the first token of a tree that nobody chose; one fewer for each further."""


@dataclass(frozen=True)
class _Decoding:
    """How prompts are decoded: the config with the model's own choices filled in."""

    model: MTPModel
    drafter: Drafter
    chooser: LengthChooser | None
    """Of the lengths of drafts, where they are found out."""
    draft: str
    conditions: str
    max_new_tokens: int
    eos_token_id: tuple[int, ...]
    sampling: SamplingConfig
    seed: int

    @property
    def generator(self) -> torch.Generator | None:
        """A fresh one, of the host, so that a seed gives the same texts wherever the model is."""
        return torch.Generator().manual_seed(self.seed) if self.sampling.do_sample else None


def run(config: GenerateConfig, directory: Path, prompts: Sequence[str]) -> None:
    """Print the texts, or one prompt's decoding explained; the account goes to the standard error.

    Raises:
        ValueError: the model, the prompts and the config do not fit; the message says what does.
        TypeError: the trunk has layers that decoding cannot take drafts back from.
        MemoryError: the cache does not fit.
    """
    transformers.utils.logging.disable_progress_bar()
    device = checked_device(
        config.device or ("cuda" if torch.cuda.is_available() else "cpu"), "--device", "--device cpu"
    )
    tokenizer = load_tokenizer(directory)
    input_ids, mask = encode_prompts(tokenizer, prompts)
    if config.explain and len(prompts) > 1:
        raise ValueError(f"--explain shows the decoding of one prompt, and {len(prompts)} were given; give one.")
    model = as_mtp_model(load_any_model(directory))
    torch.nn.Module.to(model, device)
    decoding = _decoding(config, model, tokenizer, mask)
    capacity = int(mask.sum(dim=1).max()) + decoding.max_new_tokens + decoding.drafter.max_drafts
    print(f"cache: {cache_size(model.trunk.config, len(mask), capacity, model.dtype)}", file=sys.stderr)
    if config.explain:
        _explain(decoding, tokenizer, input_ids[0].to(device))
    else:
        _generate(decoding, tokenizer, input_ids.to(device), mask.to(device))


def _generate(decoding: _Decoding, tokenizer: PreTrainedTokenizerBase, input_ids: Tensor, mask: Tensor) -> None:
    sampling = decoding.sampling
    start = time.perf_counter()
    output = generate(
        decoding.model,
        input_ids,
        mask,
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=decoding.eos_token_id,
        do_sample=sampling.do_sample,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        draft=decoding.drafter,
        num_draft=decoding.chooser,
        generator=decoding.generator,
    )
    seconds = time.perf_counter() - start
    width = input_ids.shape[1]
    for prompt, is_real, row, length in zip(input_ids, mask.bool(), output.sequences, output.lengths, strict=True):
        print(decode_text(tokenizer, [*prompt[is_real].tolist(), *row[width : width + int(length)].tolist()]))
    sys.stdout.flush()
    num_tokens, num_forwards = int(output.lengths.sum()), output.num_trunk_forwards
    print(_account(num_tokens, num_forwards, output.tokens_per_forward, seconds, decoding), file=sys.stderr)


def _explain(decoding: _Decoding, tokenizer: PreTrainedTokenizerBase, prompt: Tensor) -> None:
    console = Console(highlight=False, emoji=False)
    marks = Marks.for_encoding(console.encoding)

    def decoded(draft: str | Drafter) -> tuple[Explanation, float]:
        start = time.perf_counter()
        explanation = explain(
            decoding.model,
            prompt,
            max_new_tokens=decoding.max_new_tokens,
            eos_token_id=decoding.eos_token_id,
            sampling=decoding.sampling,
            draft=draft,
            generator=decoding.generator,
        )
        return explanation, time.perf_counter() - start

    explanation, seconds = decoded(decoding.drafter)
    step_by_step, _ = decoded("none")
    draft, is_sampled, conditions = decoding.draft, decoding.sampling.do_sample, decoding.conditions
    show_explanation(explanation, tokenizer, draft, is_sampled, marks, console)
    show_side_by_side(step_by_step, explanation, tokenizer, draft, is_sampled, conditions, marks, console)
    sys.stdout.flush()
    num_tokens, num_forwards = len(explanation.new_tokens), len(explanation.rounds)
    per_forward = (num_tokens - 1) / (num_forwards - 1) if num_forwards > 1 else float("nan")
    print(_account(num_tokens, num_forwards, per_forward, seconds, decoding), file=sys.stderr)


def _account(num_tokens: int, num_forwards: int, per_forward: float, seconds: float, decoding: _Decoding) -> str:
    """One line that is true of this call alone, with what its numbers depend on."""
    each = f"{per_forward:.2f} a row and forward after the prompts'" if num_forwards > 1 else "the prompts' alone"
    return (
        f"{num_tokens} tokens in {num_forwards} trunk forwards ({each}), {seconds:.3f} s not warmed up; "
        f"{decoding.conditions}"
    )


def _decoding(config: GenerateConfig, model: MTPModel, tokenizer: PreTrainedTokenizerBase, mask: Tensor) -> _Decoding:
    depth = model.config.depth
    draft = config.draft
    if draft is None:
        draft = "mtp" if can_draft(model) else "none"
    if draft == "none" and config.explain:
        raise ValueError(
            "--explain shows drafts and what became of them, and this model has no heads to draft with; choose "
            "--draft lookup, or --draft-model PATH."
        )
    if draft in ("mtp", "tree") and not can_draft(model):
        raise ValueError(
            f"--draft {draft}: this model has no heads to draft with, of the tokens right after one another; choose "
            "--draft none or --draft lookup, or --draft-model PATH."
        )
    if draft == "none" and config.num_draft is not None:
        raise ValueError(
            f"--num-draft {config.num_draft}: this model has no heads to draft with; choose --draft lookup, or "
            "--draft-model PATH, or leave it out."
        )
    chooser, num_draft = length_chooser(config.num_draft, can_choose=True)
    tree = config.tree
    if draft == "tree" and tree is None:
        tree = tuple(max(1, _WIDEST_FIRST - ahead) for ahead in range(max(1, depth - 1)))
    if config.draft_model is None:
        drafter = make_drafter(model, "mtp" if draft == "tree" else draft, num_draft, tree)
    else:
        drafting = torch.nn.Module.to(load_any_model(config.draft_model), model.device)
        drafter = make_drafter(model, drafting, num_draft, None)
    length = AUTO if chooser else drafter.max_drafts
    shape = f"num_draft={length}" if tree is None else f"tree={','.join(map(str, tree))}"
    sampled = config.temperature > 0
    return _Decoding(
        model=model,
        drafter=drafter,
        chooser=chooser,
        draft=draft,
        conditions=(
            f"batch size {len(mask)}, temperature {config.temperature:g}, draft {draft}, K={depth}, {shape}, "
            f"{_hardware(model)}"
        ),
        max_new_tokens=_max_new_tokens(config, model, int(mask.sum(dim=1).max())),
        eos_token_id=_ends(model, tokenizer),
        sampling=SamplingConfig(
            sampled, config.temperature if sampled else 1.0, config.top_k, config.top_p, config.repetition_penalty
        ),
        seed=config.seed,
    )


def _max_new_tokens(config: GenerateConfig, model: MTPModel, longest: int) -> int:
    """As asked for, else as many as there is room for behind the longest prompt, 64 at most."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = DEFAULT_NEW_TOKENS if context is None else context - longest
    if room < 1:
        raise ValueError(
            f"a prompt has {longest} tokens and the model a context of {context}, which has to hold the prompt and at "
            "least one new token; shorten the prompt."
        )
    return min(room, DEFAULT_NEW_TOKENS) if config.max_new_tokens is None else config.max_new_tokens


def _ends(model: MTPModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What ends a text: the model's end tokens and the tokenizer's, which some checkpoints tell apart."""
    named = getattr(model.generation_config, "eos_token_id", None)
    ends = [named] if isinstance(named, int) else list(named or ())
    return tuple(dict.fromkeys([*ends, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])]))


def _hardware(model: MTPModel) -> str:
    precision = str(model.dtype).removeprefix("torch.")
    if model.device.type == "cuda":
        return f"{torch.cuda.get_device_name(model.device)}, {precision}"
    return (
        f"{model.device.type} ({platform.machine()}, cores: {os.cpu_count()}, threads: {torch.get_num_threads()}), "
        f"{precision}"
    )
