"""Seconds of TRL's rollout phase with the lossless decoder beside its default generation, on one model, in one run.

    worldmtp train experiment=quickstart agent.rollout.num_iterations=0 hydra.run.dir=runs/rollout_speed
    python benchmarks/rollout_speed.py runs/rollout_speed

The model is that run's, after its warm start. What is timed is ``MTPGRPOTrainer._generate``, in training mode: prompts
to tokens, sampling, tokens to text, metrics. Answers end where the policy ends them. Arms:

    trl       transformers' generate, as TRL calls it
    none      ours, one token a forward
    mtp       ours, drafts of the heads, all depths

Each repeat has prompts of its own, which every arm answers once, in turns, with arms in another order each time. A
figure is the seconds of ``trl`` a token over the arm's, both summed over repeats: sampled answers differ from arm to
arm, and so do their lengths. Intervals are 90 %, over repeats.
"""

import argparse
import copy
import os
import platform
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

import worldmtp
from worldmtp.post_training import MTPGRPOConfig, MTPGRPOTrainer
from worldmtp.statistics import sums_interval

ARMS = ("trl", "none", "mtp")


def constant(completions: list[str], **columns: Any) -> list[float]:
    """Pay nothing: no reward is asked for."""
    return [0.0] * len(completions)


def make_trainer(opened: Any, draft: str, prompts: list[str], options: argparse.Namespace, directory: str) -> Any:
    """Return a trainer of a copy of the model, which samples by ``draft``."""
    args = MTPGRPOConfig(
        directory,
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=options.new_tokens or opened.environment.max_new,
        temperature=options.temperature,
        mtp_draft=draft,
        beta=0.0,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    rows = Dataset.from_list([{"prompt": prompt} for prompt in prompts])
    model = copy.deepcopy(opened.model)
    trainer = MTPGRPOTrainer(model, constant, args, train_dataset=rows, processing_class=opened.tokenizer)
    model.train()
    return trainer


def relative_speed(sums: np.ndarray) -> np.ndarray:
    """Return (seconds a token of the first) / (seconds a token of the second), of columns s, n, s, n."""
    return (sums[..., 0] / sums[..., 1]) / (sums[..., 2] / sums[..., 3])


def measure(trainers: dict[str, Any], batches: list[list[str]]) -> list[str]:
    """Return the table's rows for batches of one size, of which the first is warm-up."""
    seconds, tokens = defaultdict(list), defaultdict(list)
    for repeat, prompts in enumerate(batches):
        for arm in ARMS if repeat % 2 else reversed(ARMS):
            torch.manual_seed(repeat)
            begin = time.perf_counter()
            _, completions, *_ = trainers[arm]._generate(prompts)
            if repeat:
                seconds[arm].append(time.perf_counter() - begin)
                tokens[arm].append(sum(map(len, completions)))
    rows = []
    for arm in ARMS:
        sums = np.stack([seconds["trl"], tokens["trl"], seconds[arm], tokens[arm]], axis=1).astype(float)
        gain = sums_interval(sums, relative_speed, generator=0, unit="batch of prompts")
        per_token = 1e3 * sum(seconds[arm]) / sum(tokens[arm])
        per_forward = trainers[arm].mtp_drafts["train"].take("").get("mtp/tokens_per_forward")
        rows.append(
            f"| {len(batches[0])} | {arm} | {1e3 * np.mean(seconds[arm]):.1f} | {per_token:.3f} | {gain.estimate:.2f}x "
            f"[{gain.low:.2f}, {gain.high:.2f}] | {'' if per_forward is None else f'{per_forward:.2f}'} |"
        )
    return rows


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the directory of a run")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--repeats", type=int, nargs="+", default=[60, 30, 20], help="of each batch size")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--new-tokens", type=int, default=0, help="of an answer at most; 0: the environment's")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if len(options.repeats) != len(options.batches):
        parser.error(f"--batches has {len(options.batches)} sizes and --repeats {len(options.repeats)}; give as many")
    torch.set_num_threads(options.threads)
    opened = worldmtp.open_run(options.run)
    sizes = dict(zip(options.batches, options.repeats, strict=True))
    examples = opened.environment.examples("heldout", max(size * (1 + n) for size, n in sizes.items()), seed=0)
    prompts = [example.prompt for example in examples]
    config, longest = opened.model.trunk.config, options.new_tokens or opened.environment.max_new
    print(
        f"{config.num_hidden_layers} layers x {config.hidden_size}, head {opened.model.config.head}, "
        f"K={opened.model.config.depth}, {platform.machine()}, {os.cpu_count()} cores, {options.threads} threads; "
        f"{opened.config.env.id}, answers of {longest} tokens at most, temperature {options.temperature:g}\n"
    )
    columns = ("batch", "arm", "ms a phase", "ms a token", "speed-up over trl", "tokens a forward of a row")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    with tempfile.TemporaryDirectory() as folder:
        trainers = {arm: make_trainer(opened, arm, prompts, options, folder) for arm in ARMS}
        for size, repeats in sizes.items():
            batches = [prompts[size * i : size * (i + 1)] for i in range(1 + repeats)]
            print("\n".join(measure(trainers, batches)), flush=True)


if __name__ == "__main__":
    main()
