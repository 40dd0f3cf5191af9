"""What ``worldmtp generate`` does once it knows the model's directory and the prompts: load, decode, print, account."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path

import torch
import transformers
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from worldmtp.cli.arguments import load_model
from worldmtp.cli.explained import show_explanation, show_side_by_side
from worldmtp.cli.generate_config import AUTO, GenerateConfig
from worldmtp.cli.prompts import decode_text, encode_prompts
from worldmtp.cli.writing import Marks
from worldmtp.decoding import SamplingConfig, generate, parallel_beam
from worldmtp.decoding.adaptive import LengthChooser, length_chooser
from worldmtp.decoding.beam import BeamTree
from worldmtp.decoding.drafts import Drafter, make_drafter
from worldmtp.decoding.explain import Explanation, explain
from worldmtp.decoding.head_drafts import can_draft
from worldmtp.decoding.limits import cache_size
from worldmtp.model import MTPModel
from worldmtp.training.saved_model import has_tokenizer, load_tokenizer

DEFAULT_NEW_TOKENS = 64
_WIDEST_FIRST = 3
"""Candidates for the first token of a tree that nobody chose; one fewer for each further."""


@dataclass(frozen=True)
class _Decoding:
    """How prompts are decoded: the config with the model's own choices filled in."""

    config: GenerateConfig
    model: MTPModel
    tokenizer: PreTrainedTokenizerBase
    drafter: Drafter
    chooser: LengthChooser | None
    """Of the lengths of drafts, where the fastest is looked for."""
    draft: str
    method: str
    """The draft or the search, in words."""
    eos_token_ids: tuple[int, ...]
    sampling: SamplingConfig

    def generator(self) -> torch.Generator | None:
        """Return a fresh generator of the host, so that a seed gives the same texts wherever the model is."""
        return torch.Generator().manual_seed(self.config.seed) if self.sampling.do_sample else None

    def max_new_tokens(self, longest: int) -> int:
        """Return the number asked for, else as many as there is room for behind the longest prompt, 64 at most."""
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        room = DEFAULT_NEW_TOKENS if context is None else context - longest
        if room < 1:
            raise ValueError(
                f"a prompt has {longest} tokens and the model a context of {context}, which has to hold the prompt and "
                "at least one new token; shorten the prompt."
            )
        asked = self.config.max_new_tokens
        return min(room, DEFAULT_NEW_TOKENS) if asked is None else asked

    def conditions(self, batch_size: str) -> str:
        """Return what an account depends on."""
        return (
            f"batch size {batch_size}, temperature {self.config.temperature:g}, {self.method}, {_hardware(self.model)}"
        )


@dataclass(frozen=True)
class _Answer:
    """A line of ``--json``: a prompt, the text after it, its tokens, why it ended, and the rounds that it took."""

    prompt: str
    text: str
    tokens: list[int]
    reason: str
    rounds: int


def write_texts(config: GenerateConfig, directory: Path, batches: Iterable[Sequence[str]]) -> None:
    """Print the texts of prompts, batch by batch as they come; the account goes to the standard error.

    Raises:
        ValueError: the model, the prompts and the config do not fit; the message says what does.
        TypeError: the trunk has layers that decoding cannot take drafts back from.
        MemoryError: the cache does not fit.
    """
    tokenizer = _tokenizer(directory)
    if isinstance(batches, list):  # prompts that are known are checked before the model is loaded
        encode_prompts(tokenizer, [prompt for batch in batches for prompt in batch])
    decoding = _load(config, directory, tokenizer)
    generator, totals = decoding.generator(), _Totals()
    for prompts in batches:
        input_ids, mask = encode_prompts(tokenizer, prompts, totals.num_prompts)
        start = time.perf_counter()
        try:
            decoded = _decode(decoding, generator, input_ids.to(decoding.model.device), mask, totals)
        except MemoryError as error:
            raise MemoryError(f"{error} See --batch-size and --max-new-tokens.") from None
        totals.seconds += time.perf_counter() - start
        for prompt, (ids, tokens, rounds) in zip(prompts, decoded, strict=True):
            print_text(decoding, prompt, ids, tokens, rounds)
        sys.stdout.flush()
    if not totals.num_prompts:
        encode_prompts(tokenizer, [])  # which says what to do
    print(totals.account(decoding), file=sys.stderr)


def print_text(decoding: _Decoding, prompt: str, ids: Sequence[int], tokens: list[int], rounds: int) -> None:
    """Print a prompt with the text after it, or the line of ``--json``; ``tokens`` follow the prompt's ``ids``."""
    before, text, is_stopped = _split(decoding, ids, tokens)
    if decoding.config.json:
        reason = "stop" if is_stopped else "eos" if tokens[-1] in decoding.eos_token_ids else "length"
        print(json.dumps(asdict(_Answer(prompt, text, tokens, reason, rounds)), ensure_ascii=False))
    else:
        print(before + text)


@dataclass
class _Totals:
    """What all batches so far took."""

    num_prompts: int = 0
    largest: int = 0
    num_tokens: int = 0
    num_forwards: int = 0
    num_rounds: int = 0
    seconds: float = 0.0
    cache_bytes: int = 0

    def account(self, decoding: _Decoding) -> str:
        """Return one line that is true of this call alone, with what its numbers depend on."""
        batch_size = str(self.largest) if self.largest == self.num_prompts else f"up to {self.largest}"
        per_round = (self.num_tokens - self.num_prompts) / self.num_rounds if self.num_rounds else float("nan")
        return _account(self.num_tokens, self.num_forwards, per_round, self.seconds, decoding.conditions(batch_size))


def _decode(
    decoding: _Decoding, generator: torch.Generator | None, input_ids: Tensor, mask: Tensor, totals: _Totals
) -> list[tuple[list[int], list[int], int]]:
    """Return the ids of each prompt, its new tokens, and the rounds that these took; add to the totals."""
    config, model, sampling = decoding.config, decoding.model, decoding.sampling
    longest, num_rows = int(mask.sum(dim=1).max()), len(mask)
    max_new_tokens = decoding.max_new_tokens(longest)
    mask = mask.to(input_ids.device)
    prompts = [row[is_real].tolist() for row, is_real in zip(input_ids, mask.bool(), strict=True)]
    widths = None if config.beam is None else config.widths or (config.beam,)
    extra = decoding.drafter.max_drafts if widths is None else BeamTree(widths).num_nodes
    size = cache_size(model.trunk.config, num_rows * (config.beam or 1), longest + max_new_tokens + extra, model.dtype)
    if size.num_bytes > totals.cache_bytes:
        print(f"cache: {size}", file=sys.stderr)
        totals.cache_bytes = size.num_bytes
    if widths is not None:
        found = parallel_beam(
            model,
            input_ids,
            mask,
            widths=widths,
            num_beams=config.beam or 1,
            max_new_tokens=max_new_tokens,
            eos_token_id=decoding.eos_token_ids,
        )
        sequences, lengths, rounds, num_forwards = (
            found.sequences, found.lengths, [found.num_rounds] * num_rows, found.num_trunk_forwards,
        )  # fmt: skip
    else:
        output = generate(
            model,
            input_ids,
            mask,
            max_new_tokens=max_new_tokens,
            eos_token_id=decoding.eos_token_ids,
            do_sample=sampling.do_sample,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            stop_when=_stop_when(decoding, prompts),
            draft=decoding.drafter,
            num_draft=decoding.chooser,
            generator=generator,
            three_phase=config.three_phase,
        )
        sequences, lengths, rounds, num_forwards = (
            output.sequences, output.lengths, output.num_rounds.tolist(), output.num_trunk_forwards,
        )  # fmt: skip
    totals.num_prompts += num_rows
    totals.largest = max(totals.largest, num_rows)
    totals.num_tokens += int(lengths.sum())
    totals.num_forwards += num_forwards
    totals.num_rounds += sum(rounds)
    width = input_ids.shape[1]
    new = [row[width : width + length].tolist() for row, length in zip(sequences, lengths.tolist(), strict=True)]
    return list(zip(prompts, new, rounds, strict=True))


def _stop_when(decoding: _Decoding, prompts: list[list[int]]) -> Callable[[int, Sequence[int]], bool] | None:
    """Return whether a prompt's new text has a stop in it; None without stops.

    Text does not say where its tokens are cut, so it is looked for in the text and not among the tokens.
    """
    if not decoding.config.stop:
        return None
    return lambda row, tokens: _split(decoding, prompts[row], tokens)[2]


def _split(decoding: _Decoding, prompt: Sequence[int], tokens: Sequence[int]) -> tuple[str, str, bool]:
    """Return the text of a prompt, that of its new tokens before any stop, and whether there was a stop."""
    whole = decode_text(decoding.tokenizer, [*prompt, *tokens])
    # Tokens are decoded together, as some write a space only where they do not come first.
    alone = decode_text(decoding.tokenizer, prompt)
    start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(whole, alone, strict=False)))
    before, text = whole[:start], whole[start:]
    ends = [at for at in map(text.find, decoding.config.stop) if at >= 0]
    return before, text[: min(ends, default=len(text))], bool(ends)


def explain_prompt(config: GenerateConfig, directory: Path, prompts: Sequence[str]) -> None:
    """Print one prompt's decoding step by step; the account goes to the standard error.

    Raises:
        ValueError: several prompts, or as ``write_texts``.
        TypeError: as ``write_texts``.
        MemoryError: as ``write_texts``.
    """
    tokenizer = _tokenizer(directory)
    input_ids, _ = encode_prompts(tokenizer, prompts)
    if len(prompts) > 1:
        raise ValueError(f"--explain shows the decoding of one prompt, and {len(prompts)} were given; give one.")
    decoding = _load(config, directory, tokenizer)
    prompt = input_ids[0].to(decoding.model.device)
    console = Console(highlight=False, emoji=False)
    marks = Marks.for_encoding(console.encoding)

    def decoded(draft: str | Drafter) -> tuple[Explanation, float]:
        start = time.perf_counter()
        explanation = explain(
            decoding.model,
            prompt,
            max_new_tokens=decoding.max_new_tokens(len(prompt)),
            eos_token_id=decoding.eos_token_ids,
            sampling=decoding.sampling,
            draft=draft,
            generator=decoding.generator(),
        )
        return explanation, time.perf_counter() - start

    explanation, seconds = decoded(decoding.drafter)
    step_by_step, _ = decoded("none")
    draft, is_sampled, conditions = decoding.draft, decoding.sampling.do_sample, decoding.conditions("1")
    show_explanation(explanation, tokenizer, draft, is_sampled, marks, console)
    show_side_by_side(step_by_step, explanation, tokenizer, draft, is_sampled, conditions, marks, console)
    sys.stdout.flush()
    num_tokens, num_forwards = len(explanation.new_tokens), len(explanation.rounds)
    per_round = (num_tokens - 1) / (num_forwards - 1) if num_forwards > 1 else float("nan")
    print(_account(num_tokens, num_forwards, per_round, seconds, conditions), file=sys.stderr)


def _account(num_tokens: int, num_forwards: int, per_round: float, seconds: float, conditions: str) -> str:
    each = f"{per_round:.2f} a row and forward after the prompts'" if per_round == per_round else "the prompts' alone"
    return f"{num_tokens} tokens in {num_forwards} trunk forwards ({each}), {seconds:.3f} s not warmed up; {conditions}"


def load_searched(config: GenerateConfig, directory: Path) -> _Decoding:
    """Return the model of ``--search``, which is decoded without drafts."""
    return _load(config, directory, _tokenizer(directory))


def _tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    transformers.utils.logging.disable_progress_bar()
    return load_tokenizer(directory)


def _load(config: GenerateConfig, directory: Path, tokenizer: PreTrainedTokenizerBase) -> _Decoding:
    """Load the models and choose what the config leaves open."""
    model = _model_of(directory, tokenizer, config.device)
    depth, draft = model.config.depth, _draft(config, model)
    chooser, num_draft = length_chooser(config.num_draft, can_choose=True)
    tree = config.tree
    if draft == "tree" and tree is None:
        tree = tuple(max(1, _WIDEST_FIRST - ahead) for ahead in range(max(1, depth - 1)))
    if config.draft_model is None:
        drafter = make_drafter(model, "mtp" if draft == "tree" else draft, num_draft, tree)
    else:
        own = load_tokenizer(config.draft_model) if has_tokenizer(config.draft_model) else tokenizer
        drafting = _model_of(config.draft_model, own, str(model.device))
        drafter = make_drafter(model, drafting, num_draft, None)
        differing = own.get_vocab().items() ^ tokenizer.get_vocab().items()
        if differing:
            raise ValueError(
                f"--draft-model {config.draft_model} writes in other tokens than the model, such as "
                f"{min(differing, key=str)[0]!r}, so that none of its drafts would mean what it says; give a model of "
                "the same tokenizer, or --draft lookup."
            )
    length = AUTO if chooser else drafter.max_drafts
    method = f"draft {draft}, K={depth}, "
    method += f"num_draft={length}" if tree is None else f"tree={','.join(map(str, tree))}"
    if config.three_phase:
        method += ", three phases"
    if config.beam is not None:
        method = f"beam {config.beam}, K={depth}, widths={','.join(map(str, config.widths or (config.beam,)))}"
    if config.search is not None:
        method = f"search {config.search} over {config.dynamics or 'mtp'}, K={depth}"
    sampled = config.temperature > 0
    return _Decoding(
        config=config,
        model=model,
        tokenizer=tokenizer,
        drafter=drafter,
        chooser=chooser,
        draft=draft,
        method=method,
        eos_token_ids=_ends(model, tokenizer),
        sampling=SamplingConfig(
            sampled, config.temperature if sampled else 1.0, config.top_k, config.top_p, config.repetition_penalty
        ),
    )


def _model_of(directory: Path, tokenizer: PreTrainedTokenizerBase, device: str | None) -> MTPModel:
    """Load a model that writes no id that its tokenizer has no text for: embeddings are often padded beyond them.

    A tokenizer may have more ids than the model; prompts that have none of those can be gone on from.
    """
    model = load_model(directory, device)
    known = 1 + max(tokenizer.get_vocab().values())
    if known < model.num_tokens:
        model.limit_tokens(known)
    return model


def _draft(config: GenerateConfig, model: MTPModel) -> str:
    """Return the kind of draft that was asked for, else the heads' where there are any."""
    if config.beam is not None or config.search is not None:
        return "none"
    draft = config.draft
    if draft is None:
        draft = "mtp" if can_draft(model) else "none"
    if draft == "none" and (config.explain or config.three_phase):
        shows = "--explain shows drafts and what became of them" if config.explain else "--three-phase verifies drafts"
        raise ValueError(
            f"{shows}, and this model has no heads to draft with; choose --draft lookup, or --draft-model PATH."
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
    return draft


def _ends(model: MTPModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return what ends a text: the model's end tokens and the tokenizer's, which some checkpoints tell apart."""
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
