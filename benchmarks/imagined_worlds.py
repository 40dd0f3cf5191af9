"""How many real decisions does a world take to learn, with imagined episodes and without? One table, paired by seed.

    python benchmarks/imagined_worlds.py --worlds frozen_lake key_door --seeds 0 1 2 3 4 5 6 7 --out runs/worlds.jsonl

After every iteration the policy is evaluated: 64 held-out episodes, sampled as it acts, not counted. An arm is done
when the mean of two evaluations in a row has reached 90 % of the optimum; what is reported are the policy's real
decisions (tokens) until 80 and 90 %. A run that does not reach one within ``--limit`` decisions is censored: it counts
with the limit, and is marked. Same seed: same initial weights and same first batch.

Each run adds a line to ``--out``, and is not repeated. So several commands can share the work and the file; without
``--seeds`` the table of what is there is printed.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from scipy import stats

from worldmtp.agents.policies import TrunkPolicy
from worldmtp.agents.rollout import collect_rollout, episode_returns
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.cli.schema import build, register
from worldmtp.random import stream_seed
from worldmtp.training.config import TrainConfig
from worldmtp.training.imports import import_user_modules
from worldmtp.training.make import make_env, make_model, on_device
from worldmtp.training.run_prompts import choose_pool, draw_run_prompts, rows_of_run

ARMS: dict[str, tuple[str, ...]] = {
    "ppo": ("imagination=off",),
    "ppo, 16 epochs": ("imagination=off", "agent.ppo.num_epochs=16"),
    "episodes": ("imagination=episodes",),
    "true world": ("imagination=episodes", "world_model=oracle"),
    "shuffled": ("imagination=episodes", "world_model=shuffled", "imagination.episodes.gated=false"),
    "blind": ("imagination=episodes", "world_model=identity", "imagination.episodes.gated=false"),
    # After the first reward the gate is shut, so that only the exploration before it is left.
    "bonus alone": ("imagination=episodes", "imagination.episodes.max_disagreement=0"),
    "ensemble of 2": ("imagination=episodes", "world_model.replies.num_members=2"),
    "3 batches": ("imagination=episodes", "imagination.episodes.num_batches=3"),
}
"""Name to overrides. ``shuffled`` and ``blind`` are placebos, their gates held open; ``true world`` is the bound."""

_FRACTIONS = (0.8, 0.9)
_EVALUATED = 64


@dataclass(frozen=True)
class Run:
    """What one run took."""

    world: str
    arm: str
    seed: int
    optimum: float
    decisions: dict[str, int]
    """Real decisions until each fraction of the optimum that was reached."""
    total: int
    first_reward: int | None
    """Real decisions when two returns first differed."""
    end: float
    """Mean return of the last four evaluations."""
    seconds: float
    """Processor time of the training, without evaluations."""
    imagined_turns: int

    def until(self, fraction: float) -> tuple[int, bool]:
        """Return the decisions until a fraction of the optimum, and whether it was reached."""
        reached = self.decisions.get(str(fraction))
        return (self.total, False) if reached is None else (reached, True)


def train(config: TrainConfig, world: str, arm: str, optimum: float, limit: int) -> Run:
    """Train until 90 % of the optimum, or so many real decisions."""
    import_user_modules(config.imports)
    rollout = config.agent.rollout
    env = make_env(config.env, rollout.num_prompts * rollout.group_size)
    model = on_device(make_model(config.model, env, stream_seed(config.seed, "model")), config.profile)
    prompts = draw_run_prompts(env, config)
    choose_pool(env, prompts, config)
    held_out = prompts.held_out[:_EVALUATED]
    judge = make_env(config.env, len(held_out))
    trainer = ImaginationTrainer(
        model,
        env,
        rollout,
        config.agent.ppo,
        config.world_model,
        config.imagination,
        stream_seed(config.seed, "reinforcement"),
        lambda num_rows: rows_of_run(num_rows, prompts, config),
    )
    evaluations: list[float] = []
    decisions: dict[str, int] = {}
    returns: list[float] = []
    total, seconds, first, imagined = 0, 0.0, None, 0.0
    while str(_FRACTIONS[-1]) not in decisions and total < limit:
        start = time.process_time()
        metrics, episodes = trainer.step()
        seconds += time.process_time() - start
        total += episodes.num_tokens
        imagined += metrics.get("imagination/imagined_turns", 0.0)
        returns += episode_returns(episodes).tolist()
        if first is None and max(returns) > min(returns) + 1e-6:
            first = total
        generator = torch.Generator().manual_seed(trainer.iteration)
        options = {"split": "heldout", "prompts": list(held_out), "group_size": 1}
        evaluated = collect_rollout(judge, TrunkPolicy(model, rollout.temperature), generator, options)
        evaluations.append(float(episode_returns(evaluated).mean()))
        for fraction in _FRACTIONS:
            recent = float(np.mean(evaluations[-2:]))
            if len(evaluations) > 1 and str(fraction) not in decisions and recent >= fraction * optimum:
                decisions[str(fraction)] = total
    end = float(np.mean(evaluations[-4:]))
    return Run(world, arm, config.seed, optimum, decisions, total, first, end, seconds, int(imagined))


def read(path: Path) -> list[Run]:
    """Return the runs of a file."""
    if not path.exists():
        return []
    return [Run(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def table(runs: list[Run]) -> str:
    """Return a Markdown table, one row for each world and arm; factors are over PPO of the same seeds."""
    lines = [
        "| world | arm | seeds | decisions to 80 % | factor over PPO | to 90 % | factor over PPO | "
        "after the first reward | end / optimum | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for world in dict.fromkeys(run.world for run in runs):
        by_arm = {arm: {r.seed: r for r in runs if (r.world, r.arm) == (world, arm)} for arm in ARMS}
        for arm, own in by_arm.items():
            if not own:
                continue
            plain = by_arm["ppo"]
            cells = [cell for f in _FRACTIONS for cell in (_decisions(own, f), _factor(plain, own, f))]
            after = [run.until(0.8)[0] - (run.first_reward or run.total) for run in own.values()]
            end = np.mean([run.end / run.optimum for run in own.values()])
            seconds = np.mean([run.seconds for run in own.values()])
            lines.append(
                f"| {world} | {arm} | {len(own)} | {cells[0]} | {cells[1]} | {cells[2]} | {cells[3]} | "
                f"{_geometric(np.maximum(after, 1)):.0f} | {end:.2f} | {seconds:.0f} |"
            )
    return "\n".join(lines)


def _geometric(values: Any) -> float:
    return float(np.exp(np.mean(np.log(values))))


def _decisions(own: dict[int, Run], fraction: float) -> str:
    found = [own[seed].until(fraction) for seed in sorted(own)]
    return " ".join(f"{'' if reached else '>'}{number}" for number, reached in found)


def _factor(plain: dict[int, Run], own: dict[int, Run], fraction: float) -> str:
    """Return the geometric mean of PPO's decisions over this arm's, with a 95 % t interval over paired seeds."""
    seeds = sorted(plain.keys() & own.keys())
    logs = [np.log(plain[seed].until(fraction)[0] / own[seed].until(fraction)[0]) for seed in seeds]
    censored = sum(not run[seed].until(fraction)[1] for run in (plain, own) for seed in seeds)
    if not logs:
        return ""
    text = f"{np.exp(np.mean(logs)):.2f}"
    if len(logs) > 1:
        half = stats.t.ppf(0.975, len(logs) - 1) * np.std(logs, ddof=1) / len(logs) ** 0.5
        text += f" [{np.exp(np.mean(logs) - half):.2f}, {np.exp(np.mean(logs) + half):.2f}]"
    return text + (f" ({censored} censored)" if censored else "")


def main() -> None:
    """Run what is not in the file yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", default=["frozen_lake"], help="env= options")
    parser.add_argument("--optimum", type=float, default=1.0, help="the best mean return in these worlds")
    parser.add_argument("--arms", nargs="+", default=["ppo", "episodes"], choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    parser.add_argument("--limit", type=int, default=20_000, help="real decisions of a run")
    parser.add_argument("--out", type=Path, default=Path("runs/imagined_worlds.jsonl"))
    parser.add_argument("overrides", nargs="*", help="further overrides of every run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    register()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for world in arguments.worlds:
            for arm in arguments.arms:
                if any((run.world, run.arm, run.seed) == (world, arm, seed) for run in read(arguments.out)):
                    continue
                overrides = [f"env={world}", f"seed={seed}", *ARMS[arm], *arguments.overrides]
                with hydra.initialize_config_module("worldmtp.configs", version_base="1.3"):
                    config = build(TrainConfig, hydra.compose("train", overrides))
                run = train(config, world, arm, arguments.optimum, arguments.limit)
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(vars(run)) + "\n")
                print(f"{world} {arm} seed {seed}: {run.decisions} of {run.total}, {run.seconds:.0f} s", flush=True)
    print(table(read(arguments.out)))


if __name__ == "__main__":
    main()
