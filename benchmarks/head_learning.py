"""Do the heads go on agreeing with the trunk while they learn beside PPO? The policy is fixed, so only they can change.

    worldmtp train experiment=quickstart profile=cpu_smoke imagination=off agent.rollout.num_iterations=0 model.depth=7
    python benchmarks/head_learning.py runs/quickstart/<its directory>

Each arm starts from the run's model and learns from the same fresh episodes of its policy, as many an iteration as in
training. Agreement at depth k is the share of the policy's tokens, k ahead, of which head and trunk have the same
greedy choice, on episodes that nothing learns from. It is computed here from the logits alone. With ``--train`` the
policy learns as well, by the run's own settings, and what a run logs is printed: agreement and r2 on fresh batches, and
the squared norm of the policy's gradient over that of its control.
"""

import argparse
import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from worldmtp.agents.config import ImaginationConfig, PPOConfig, WorldModelConfig
from worldmtp.agents.policies import TrunkPolicy
from worldmtp.agents.rollout import Rollout, action_mask, collect_rollout
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.agents.world_learning import WorldModelLearner
from worldmtp.envs import TextVectorEnv
from worldmtp.model import MTPModel
from worldmtp.training.runs import OpenedRun, open_run

EARLIER: dict[str, Any] = {
    "learning_rate": 1e-3,
    "warmup_updates": 0,
    "ce_coef": 1.0,
    "kl_coef": 0.0,
    "detach_world_heads": False,
}
"""What the learner did before its settings were measured."""

TOKENS = {"ce": {"ce_coef": 1.0, "kl_coef": 0.0}, "kl": {"ce_coef": 0.0, "kl_coef": 1.0}}


def _arm(terms: str, rate: float, warmup: int = 30, detach: bool = True) -> dict[str, Any]:
    return {"learning_rate": rate, "warmup_updates": warmup, "detach_world_heads": detach} | TOKENS[terms]


ARMS: dict[str, dict[str, Any]] = {
    "as before": EARLIER,
    "detached": EARLIER | {"detach_world_heads": True},
    "warm-up": EARLIER | {"warmup_updates": 30},
    "ce 1e-3": _arm("ce", 1e-3),
    "ce 3e-4": _arm("ce", 3e-4),
    "ce 1e-4": _arm("ce", 1e-4),
    "kl 1e-3": _arm("kl", 1e-3),
    "kl 3e-4": _arm("kl", 3e-4),
    "kl 1e-4": _arm("kl", 1e-4),
    "kl 3e-4, cold": _arm("kl", 3e-4, warmup=0),
    "kl 3e-4, joint": _arm("kl", 3e-4, detach=False),
    "default": {},
}
"""Name to fields of ``WorldModelConfig``. "ce" and "kl" are detached and warmed up unless they say otherwise."""


def episodes(model: MTPModel, env: TextVectorEnv, number: int, generator: torch.Generator) -> list[Rollout]:
    """That many batches of the policy's answers to training prompts."""
    policy = TrunkPolicy(model, 1.0)
    return [collect_rollout(env, policy, generator, {"split": "train", "group_size": 1}) for _ in range(number)]


@torch.no_grad()
def agreement(model: MTPModel, rollouts: list[Rollout]) -> list[float]:
    """Of depths 2 .. K."""
    depths = range(2, model.config.depth + 1)
    hits, counts = torch.zeros(len(depths)), torch.zeros(len(depths))
    for rollout in rollouts:
        latents = model.latents(rollout.input_ids, rollout.attention_mask)
        chosen, greedy = action_mask(rollout), model.logits_of(latents[0]).argmax(dim=-1)
        for index, depth in enumerate(depths):
            # Latent i of depth k foresees token i + k, which the trunk chooses at i + k - 1.
            guess = model.logits_of(latents[depth - 1][:, :-depth], depth).argmax(dim=-1)
            same = guess == greedy[:, depth - 1 : -1]
            hits[index] += (same & chosen[:, depth:]).sum()
            counts[index] += chosen[:, depth:].sum()
    return (hits / counts.clamp(min=1)).tolist()


def beside_ppo(opened: OpenedRun, arm: str, updates: int, batch: int, num_iterations: int, seed: int) -> str:
    """Train with the run's own settings; return means over the last half of the iterations, as a row of a table."""
    config, start = opened.config, time.process_time()
    trainer = ImaginationTrainer(
        copy.deepcopy(opened.model),
        opened.environment,
        replace(config.agent.rollout, num_iterations=num_iterations),
        config.agent.ppo,
        WorldModelConfig(num_updates=updates, batch_size_episodes=batch, measure_every=1, **ARMS[arm]),
        ImaginationConfig(gradient_norm_every=2),
        seed,
    )
    logged = [trainer.step()[0] for _ in range(num_iterations)]

    def mean(tag: str, records: list[dict[str, float]]) -> float:
        values = [record[tag] for record in records if tag in record]
        return sum(values) / len(values) if values else float("nan")

    depths = range(2, opened.model.config.depth + 1)
    half, fifth = logged[num_iterations // 2 :], max(num_iterations // 5, 1)
    early, late = (
        _each([mean(f"world_model/depth_{depth}/agreement", part) for depth in depths])
        for part in (logged[:fifth], logged[-fifth:])
    )
    r2 = " ".join(f"{mean(f'imagination/rung_{rung}/r2', half):.3f}" for rung in range(3))
    ratio, paid = mean("imagination/gradient_norm_ratio", half), mean("rollout/return_mean", half)
    seconds = time.process_time() - start
    return f"| {arm} | {seed} | {early} | {late} | {r2} | {ratio:.2f} | {paid:.3f} | {seconds:.0f} |"


def main() -> None:
    """Print a row an arm and a number of updates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=96, help="an iteration")
    parser.add_argument("--updates", type=int, default=2, help="an iteration")
    parser.add_argument("--batch", type=int, default=64, help="episodes an update")
    parser.add_argument("--at", type=int, nargs="+", default=[10, 40, 100], help="updates at which to measure")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--train", type=int, default=0, help="iterations of PPO beside; 0: the policy is fixed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.train:
        sizes = open_run(arguments.run).config.agent.rollout
        opened = open_run(arguments.run, sizes.num_prompts * sizes.group_size)
        print("| arm | seed | agreement, first fifth | last fifth | r2 of rungs 0 1 2 | norm ratio | return | s |")
        print("|---|---|---|---|---|---|---|---|")
        for arm in arguments.arms:
            row = beside_ppo(opened, arm, arguments.updates, arguments.batch, arguments.train, arguments.seed)
            print(row, flush=True)
        return
    opened = open_run(arguments.run, arguments.episodes)
    generator = torch.Generator().manual_seed(arguments.seed)
    opened.environment.reset(seed=arguments.seed)
    num_iterations = -(-max(arguments.at) // arguments.updates)
    fresh = episodes(opened.model, opened.environment, num_iterations, generator)
    unseen = episodes(opened.model, opened.environment, 8, generator)
    print(f"| arm | updates | agreement d2 .. d{opened.model.config.depth} | value loss | s |", flush=True)
    print("|---|---|---|---|---|")
    print(f"| start | 0 | {_each(agreement(opened.model, unseen))} | | |", flush=True)
    for arm in arguments.arms:
        model, start = copy.deepcopy(opened.model), time.process_time()
        config = WorldModelConfig(num_updates=arguments.updates, batch_size_episodes=arguments.batch, **ARMS[arm])
        learner = WorldModelLearner(model, config, PPOConfig(), 1.0)
        order = torch.Generator().manual_seed(arguments.seed)
        for iteration, rollout in enumerate(fresh, start=1):
            learner.learn(rollout, order)
            if iteration * arguments.updates in arguments.at:
                seconds = time.process_time() - start
                with torch.no_grad():
                    loss = learner.losses(unseen[0])[1]["world_model/value_loss"]
                row = f"{_each(agreement(model, unseen))} | {loss:.3f} | {seconds:.0f}"
                print(f"| {arm} | {iteration * arguments.updates} | {row} |", flush=True)


def _each(values: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


if __name__ == "__main__":
    main()
