"""Seconds a token of our decoding beside transformers' ``generate``, on one trunk, in one run.

    python benchmarks/decoding_model.py && python benchmarks/decoding_speed.py

Prompts are of held-out files, every text is as long, and nothing ends early. In each repeat every arm decodes the same
prompts once, one after the other, so that what slows the machine down slows all; the figure is the median over repeats
of the ratio to transformers' dynamic cache, with its middle half. Arms:

    dynamic, static    transformers' generate with either cache
    none               ours, without drafts
    mtp g              ours, with g drafts of the heads; "auto" finds g while it decodes, over all repeats
    lookup             ours, with what followed the last time
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmtp.decoding import AdaptiveLength, generate
from worldmtp.model import MTPModel
from worldmtp.studies.batches import eval_windows
from worldmtp.studies.shared import load_tokens

PROMPT = 32


def arms_of(model: MTPModel, prompts: torch.Tensor, temperature: float, args: Any) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    mask, num_new, trunk = torch.ones_like(prompts), args.new_tokens, model.trunk

    def theirs(cache: str) -> torch.Tensor:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        return trunk.generate(
            prompts,
            attention_mask=mask,
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            cache_implementation=cache,
            pad_token_id=0,
            **sampling,
        )

    def ours(**options: Any) -> Any:
        sampling: dict[str, Any] = {}
        if temperature:
            generator = torch.Generator().manual_seed(0)
            sampling = {"do_sample": True, "temperature": temperature, "generator": generator}
        return generate(model, prompts, mask, max_new_tokens=num_new, **sampling, **options)

    arms: dict[str, Callable[[], Any]] = {
        "dynamic": lambda: theirs("dynamic"),
        "static": lambda: theirs("static"),
        "none": lambda: ours(draft="none"),
    }
    if model.config.depth > 1:
        for length in args.drafts:
            arms[f"mtp {length}"] = lambda length=length: ours(draft="mtp", num_draft=length)  # type: ignore[misc]
        learned = AdaptiveLength()
        arms["mtp auto"] = lambda: ours(draft="mtp", num_draft=learned)
    arms["lookup"] = lambda: ours(draft="lookup")
    return arms


def measure(model: MTPModel, prompts: torch.Tensor, temperature: float, args: Any) -> list[str]:
    """Rows of the table for one batch size and temperature."""
    arms = arms_of(model, prompts, temperature, args)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    per_forward = {}
    for repeat in range(args.repeats + 1):
        for name, arm in arms.items():
            begin = time.perf_counter()
            output = arm()
            if repeat:  # the first is warm-up
                seconds[name].append(time.perf_counter() - begin)
            if not isinstance(output, torch.Tensor):
                per_forward[name] = output.tokens_per_forward
    base = np.asarray(seconds["dynamic"])
    rows = []
    for name, measured in seconds.items():
        low, middle, high = np.quantile(base / np.asarray(measured), [0.25, 0.5, 0.75])
        per_token = 1e3 * np.median(measured) / args.new_tokens
        tokens = f"{per_forward[name]:.2f}" if name in per_forward else ""
        rows.append(
            f"| {len(prompts)} | {temperature:g} | {name} | {per_token:.2f} | {middle:.2f}x [{low:.2f}, {high:.2f}] "
            f"| {tokens} |"
        )
    return rows


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("runs/decoding_model"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--drafts", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = MTPModel.from_pretrained(args.directory / "model").eval()
    prompts = eval_windows(load_tokens(args.directory)["held_out"], PROMPT, max(args.batches))
    config = model.trunk.config
    print(
        f"{config.num_hidden_layers} layers x {config.hidden_size}, head {model.config.head}, K={model.config.depth}, "
        f"float32, {platform.machine()}, {os.cpu_count()} cores, {args.threads} threads; prompts of {PROMPT}, "
        f"{args.new_tokens} new tokens\n"
    )
    columns = ("batch", "temperature", "arm", "ms a token of each row", "speed-up over dynamic", "tokens a forward")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for batch in args.batches:
        for temperature in args.temperatures:
            print("\n".join(measure(model, prompts[:batch], temperature, args)), flush=True)


if __name__ == "__main__":
    main()
