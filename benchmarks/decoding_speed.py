"""Seconds a token of our decoding beside transformers' ``generate``, on one trunk, in one run.

    python benchmarks/decoding_model.py && python benchmarks/decoding_speed.py

Prompts are of held-out files, every text is as long, and nothing ends early. Each repeat has a batch of prompts of its
own, which every arm decodes once, one after the other, so that what slows the machine down slows all. The figure is the
seconds of transformers' dynamic cache over the arm's, both summed over repeats; intervals are 90 %, over repeats. Arms:

    dynamic, static    transformers' generate with either cache
    none               ours, without drafts
    mtp g              ours, with g drafts of the heads; "auto" finds g while it decodes, over all repeats
    lookup             ours, with what followed the last time
"""

import argparse
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmtp.decoding import AdaptiveLength, generate
from worldmtp.model import MTPModel
from worldmtp.statistics import ratio_interval
from worldmtp.studies.batches import eval_windows
from worldmtp.studies.corpus import load_tokens

PROMPT = 32


def arms_of(model: MTPModel, temperature: float, args: Any) -> dict[str, Callable[[torch.Tensor], Any]]:
    """What is timed on prompts, by name."""
    num_new, trunk = args.new_tokens, model.trunk

    def theirs(cache: str, prompts: torch.Tensor) -> torch.Tensor:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        return trunk.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            cache_implementation=cache,
            pad_token_id=0,
            **sampling,
        )

    def ours(prompts: torch.Tensor, **options: Any) -> Any:
        sampling: dict[str, Any] = {}
        if temperature:
            generator = torch.Generator().manual_seed(0)
            sampling = {"do_sample": True, "temperature": temperature, "generator": generator}
        return generate(model, prompts, torch.ones_like(prompts), max_new_tokens=num_new, **sampling, **options)

    arms: dict[str, Callable[[torch.Tensor], Any]] = {
        "dynamic": partial(theirs, "dynamic"),
        "static": partial(theirs, "static"),
        "none": partial(ours, draft="none"),
    }
    if model.config.depth > 1:
        for length in args.drafts:
            arms[f"mtp {length}"] = partial(ours, draft="mtp", num_draft=length)
        arms["mtp auto"] = partial(ours, draft="mtp", num_draft=AdaptiveLength())
    arms["lookup"] = partial(ours, draft="lookup")
    return arms


def measure(model: MTPModel, batches: Sequence[torch.Tensor], temperature: float, args: Any) -> list[str]:
    """Rows of the table for batches of one size, of which the first is warm-up, and one temperature."""
    arms = arms_of(model, temperature, args)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    tokens, rounds = Counter[str](), Counter[str]()
    for repeat, prompts in enumerate(batches):
        for name, arm in arms.items():
            begin = time.perf_counter()
            output = arm(prompts)
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
            if repeat and not isinstance(output, torch.Tensor):
                tokens[name] += int((output.lengths - 1).sum())  # but the first, which the prompt's forward gives
                rounds[name] += int(output.num_rounds.sum())
    rows = []
    for name, measured in seconds.items():
        gain = ratio_interval(seconds["dynamic"], measured, generator=0, unit="batch of prompts")
        per_token = 1e3 * np.mean(measured) / args.new_tokens
        per_forward = f"{tokens[name] / rounds[name]:.2f}" if name in rounds else ""
        rows.append(
            f"| {len(batches[0])} | {temperature:g} | {name} | {per_token:.2f} | {gain.estimate:.2f}x "
            f"[{gain.low:.2f}, {gain.high:.2f}] | {per_forward} |"
        )
    return rows


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("runs/decoding_model"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--repeats", type=int, nargs="+", default=[32, 8, 6], help="of each batch size")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--drafts", type=int, nargs="+", default=[2, 3, 4, 5])
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = MTPModel.from_pretrained(args.directory / "model").eval()
    if len(args.repeats) != len(args.batches):
        parser.error(f"--batches has {len(args.batches)} sizes and --repeats {len(args.repeats)} counts; give as many")
    sizes = dict(zip(args.batches, args.repeats, strict=True))
    num_prompts = max(size * (1 + repeats) for size, repeats in sizes.items())
    prompts = eval_windows(load_tokens(args.directory)["held_out"], PROMPT, num_prompts)
    prompts = prompts[torch.randperm(num_prompts, generator=torch.Generator().manual_seed(0))]
    config = model.trunk.config
    print(
        f"{config.num_hidden_layers} layers x {config.hidden_size}, head {model.config.head}, K={model.config.depth}, "
        f"float32, {platform.machine()}, {os.cpu_count()} cores, {args.threads} threads; prompts of {PROMPT}, "
        f"{args.new_tokens} new tokens\n"
    )
    columns = ("batch", "temperature", "arm", "ms a token of each row", "speed-up over dynamic", "tokens a forward")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for size, repeats in sizes.items():
        batches = prompts[: size * (1 + repeats)].split(size)
        for temperature in args.temperatures:
            print("\n".join(measure(model, batches, temperature, args)), flush=True)


if __name__ == "__main__":
    main()
