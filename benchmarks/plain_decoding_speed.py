"""Decoding without drafts beside transformers' ``generate``, on random weights, in several processes.

    python benchmarks/plain_decoding_speed.py --processes 5

Each process makes the trunk of ``decoding_model.py`` anew, with random weights, and decodes fresh prompts with both, in
turn, first one first, then the other. The figure of a process is the median, over pairs, of the seconds of
transformers' dynamic cache over ours; processes differ by where memory and threads come to lie, so the table shows each
and their range. Both decode greedily to the same length, and the tokens are compared.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from decoding_model import PROMPT, VOCAB_SIZE, fresh_trunk

from worldmtp.decoding import generate
from worldmtp.model import MTPConfig, MTPModel


def timed(function: Callable[[torch.Tensor], torch.Tensor], prompts: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Seconds, and the new tokens."""
    begin = time.perf_counter()
    tokens = function(prompts)
    return time.perf_counter() - begin, tokens


def one_process(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """By batch size: median ratio over pairs, median milliseconds a step of each, share of equal tokens."""
    torch.set_num_threads(args.threads)
    model = MTPModel.from_trunk(fresh_trunk().eval(), MTPConfig(depth=1)).eval()

    def theirs(prompts: torch.Tensor) -> torch.Tensor:
        mask = torch.ones_like(prompts)
        return model.trunk.generate(
            prompts, attention_mask=mask, max_new_tokens=args.new_tokens, do_sample=False, pad_token_id=0
        )[:, PROMPT:]

    def ours(prompts: torch.Tensor) -> torch.Tensor:
        return generate(
            model, prompts, torch.ones_like(prompts), max_new_tokens=args.new_tokens, draft="none"
        ).sequences[:, PROMPT:]

    generator = torch.Generator().manual_seed(0)
    found = {}
    for size, repeats in zip(args.batches, args.repeats, strict=True):
        seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
        equal = []
        for repeat in range(repeats + 1):
            prompts = torch.randint(1, VOCAB_SIZE, (size, PROMPT), generator=generator)
            arms = [("theirs", theirs), ("ours", ours)]
            tokens = {}
            for name, arm in arms if repeat % 2 else reversed(arms):
                spent, tokens[name] = timed(arm, prompts)
                if repeat:  # the first pair warms up
                    seconds[name].append(spent)
            equal.append(float((tokens["theirs"] == tokens["ours"]).double().mean()))
        ratios = np.array(seconds["theirs"]) / np.array(seconds["ours"])
        per_step = {name: 1e3 * float(np.median(spent)) / args.new_tokens for name, spent in seconds.items()}
        found[str(size)] = {"ratio": float(np.median(ratios)), **per_step, "equal": float(np.mean(equal))}
    return found


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--repeats", type=int, nargs="+", default=[11, 7, 5], help="pairs of each batch size")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if len(args.repeats) != len(args.batches):
        parser.error(f"--batches has {len(args.batches)} sizes and --repeats {len(args.repeats)} counts; give as many")
    if args.one:
        print(json.dumps(one_process(args)))
        return
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads, torch {torch.__version__}", flush=True
    )
    runs = []
    for _ in range(args.processes):
        done = subprocess.run([sys.executable, *sys.argv, "--one"], check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        print("  ".join(f"{size}: {run['ratio']:.2f}x" for size, run in runs[-1].items()), flush=True)
    print("\n| batch | dynamic, ms a step | ours, ms a step | ratio of each process | median | equal tokens |")
    print("|---|---|---|---|---|---|")
    for size in map(str, args.batches):
        ratios = [run[size]["ratio"] for run in runs]
        theirs, ours, equal = (np.median([run[size][name] for run in runs]) for name in ("theirs", "ours", "equal"))
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| {size} | {theirs:.2f} | {ours:.2f} | {each} | **{np.median(ratios):.2f}x** | {equal:.4f} |")


if __name__ == "__main__":
    main()
