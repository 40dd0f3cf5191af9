"""What a step's numbers cost: steps with and without them in turn, in one process.

    worldmtp train experiment=quickstart profile=cpu_smoke agent.rollout.num_iterations=1
    python benchmarks/analysis_overhead.py runs/quickstart/<its directory>

Three steps: an iteration of the agent (without: nothing is measured of the fresh batch, no imagined return beside the
realized one), a PPO update (without: none of a minibatch's numbers goes to the host or has no gradient)
and a step of SFT (without: no sums by depth, no first guesses, no check). Seconds are those of the process. The figure
is with less without over with, of sums over pairs, which are resampled. Of eight iterations one measures.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.objective import policy_losses
from worldmtp.objective.token_losses import TokenLosses
from worldmtp.post_training import MTPSFTConfig, MTPSFTTrainer, build_demonstrations
from worldmtp.post_training.metrics import StepNumbers
from worldmtp.statistics import ratio_interval
from worldmtp.tracking.late_numbers import LateNumbers
from worldmtp.training.runs import OpenedRun, open_run
from worldmtp.training.warm_start import tokenizer_of


def losses_alone(*given: Any) -> dict[str, torch.Tensor]:
    """What PPO's loss needs of ``ppo_terms``."""
    logprobs, old, reference, advantages, entropy, value, mask, count, clip = given
    per_token = {
        "policy": policy_losses.policy_loss_per_token(logprobs, old, advantages, clip),
        "kl_reference": policy_losses.kl_penalty_per_token(logprobs, reference),
        "entropy": entropy,
        "value": value,
    }
    return {f"losses/{name}": policy_losses.masked_mean(values, mask, count) for name, values in per_token.items()}


@contextmanager
def silent(trainer: ImaginationTrainer | None = None) -> Iterator[None]:
    """Compute no number inside that nothing learns from."""
    nothing: Callable[..., Any] = lambda *_, **__: None  # noqa: E731 # in the place of methods
    with ExitStack() as stack:
        for owner, name, instead in (
            (LateNumbers, "add", nothing),
            (LateNumbers, "take", lambda _: [{"losses/ratio_max": 1.0}]),
            (StepNumbers, "add_terms", nothing),
            (StepNumbers, "add_depths", nothing),
            (TokenLosses, "top1_hits", lambda _: 0),
        ):
            stack.enter_context(mock.patch.object(owner, name, instead))
        stack.enter_context(mock.patch("worldmtp.agents.ppo.ppo_terms", losses_alone))
        stack.enter_context(mock.patch("worldmtp.agents.ppo.explained_variance", return_value=0.0))
        if trainer is not None:
            stack.enter_context(mock.patch("worldmtp.agents.trainer.root_agreement", return_value={}))
            stack.enter_context(mock.patch.object(trainer._learner, "measure", return_value={}))
        yield


def seconds(step: Callable[[int], Any], number: int) -> float:
    """Return what a step takes of the process's time."""
    start = time.process_time()
    step(number)
    return time.process_time() - start


def overhead(step: Callable[[int], Any], pairs: int, trainer: ImaginationTrainer | None = None) -> tuple[str, float]:
    """Return the share with its interval as text, and the seconds of a step; the order within a pair changes."""
    found = []
    for pair in range(pairs + 2):
        taken = {}
        for is_silent in (False, True) if pair % 2 else (True, False):
            with silent(trainer) if is_silent else ExitStack():
                taken[is_silent] = seconds(step, pair - 2)
        found.append((taken[False], taken[True]))
    full, bare = np.array(found[2:]).T
    share = ratio_interval(full - bare, full, generator=0, unit="pair")
    return f"{share.estimate:+.1%} [{share.low:+.1%}, {share.high:+.1%}]", float(full.mean())


def sft_step(opened: OpenedRun) -> Callable[[int], Any]:
    """Return a training step of SFT, backward pass and log's numbers included."""
    env, size, model = opened.environment, 32, opened.model.train()
    pairs = [
        (env.tokenizer.encode(example.prompt), env.tokenizer.encode(example.answer or ""))
        for example in env.examples("train", size, 0, "demonstrations")
    ]
    rows = build_demonstrations(pairs, eos_token_id=env.tokenizer.eos_id, vocab_size=model.config.vocab_size or 0)
    arguments = MTPSFTConfig(
        output_dir="unused", per_device_train_batch_size=size, max_steps=1, report_to="none", use_cpu=True
    )
    trainer = MTPSFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer_of(env))
    batch = next(iter(trainer.get_train_dataloader()))

    def step(_: int) -> None:
        trainer.training_step(model, dict(batch), torch.tensor(int((batch["labels"] != -100).sum())))
        trainer.mtp_numbers.take("train", "", lambda sums: sums)
        model.zero_grad(set_to_none=True)

    return step


def main() -> None:
    """Print a row a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--pairs", type=int, default=24, help="a multiple of 8")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = open_run(arguments.run).config.agent.rollout
    opened = open_run(arguments.run, sizes.num_prompts * sizes.group_size)
    config = opened.config
    trainer = ImaginationTrainer(
        opened.model, opened.environment, sizes, config.agent.ppo, config.world_model, config.imagination, 0
    )
    rollout, _ = trainer._collect()
    stats, plan, _ = trainer._read(rollout)
    generator = torch.Generator().manual_seed(0)

    def numbered(number: int) -> None:
        trainer.iteration = max(number, 0)
        trainer.step()

    print("| step | seconds | share of its numbers |\n|---|---|---|", flush=True)
    for name, make_step, measures in (
        ("a PPO update", lambda: lambda _: trainer.agent.update(rollout, stats, plan, generator), None),
        ("an iteration of the agent", lambda: numbered, trainer),
        ("a step of SFT", lambda: sft_step(opened), None),
    ):
        share, taken = overhead(make_step(), arguments.pairs, measures)
        print(f"| {name} | {taken:.3f} | {share} |", flush=True)


if __name__ == "__main__":
    main()
