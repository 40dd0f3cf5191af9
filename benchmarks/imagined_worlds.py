"""How many real decisions does a world take to learn, with imagined episodes and without? One table, paired by seed.

    python benchmarks/imagined_worlds.py --worlds frozen_lake key_door --seeds 0 1 2 3 4 5 6 7 --out runs/worlds.jsonl

After every iteration the policy is evaluated: 64 held-out episodes, sampled as it acts, not counted. An arm is done
when the mean of two evaluations in a row has reached 90 % of the optimum; what is reported are the policy's real
decisions (tokens) until 80 and 90 %. A run that does not reach one within ``--limit`` decisions is censored: it counts
with the limit, and is marked. Same seed: same initial weights and same first batch.

Each run adds a line to ``--out``, and is not repeated. So several commands can share the work and the file; without
``--seeds`` the table of what is there is printed, and ``--figure FILE`` draws it.

Break-even is the price of a real decision, in milliseconds beyond what it costs here, from which an arm reaches 80 % in
less time than PPO: what it computes more, over the real decisions that it saves (geometric means over paired seeds).
"""

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats

from worldmtp.agents.policies import TrunkPolicy
from worldmtp.agents.rollout import collect_rollout, episode_returns
from worldmtp.cli.schema import build, register
from worldmtp.training.config import TrainConfig
from worldmtp.training.make import make_env
from worldmtp.training.trainers import fresh_trainer

_SEARCH = ("imagination=search", "imagination.search.through_replies=true", "imagination.horizon=6")
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
    # ECHO: the replies are learnt by the policy's own network, beside PPO, and nothing is imagined.
    "observation": ("imagination=off", "agent.ppo.observation_coef=0.1"),
    "3 batches": ("imagination=episodes", "imagination.episodes.num_batches=3"),
    # A search of real states that goes on through the replies to six moves, as a target beside PPO.
    "search": _SEARCH,
    "search, corrected": (*_SEARCH, "imagination.search.corrected=true"),
    "search, true world": (*_SEARCH, "world_model=oracle"),
    "search, shuffled": (*_SEARCH, "world_model=shuffled", "imagination.search.gated=false"),
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
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    """Real decisions and mean return, after each iteration."""

    def until(self, fraction: float) -> tuple[int, bool]:
        """Return the decisions until a fraction of the optimum, and whether it was reached."""
        reached = self.decisions.get(str(fraction))
        return (self.total, False) if reached is None else (reached, True)


def train(config: TrainConfig, world: str, arm: str, optimum: float, limit: int) -> Run:
    """Train until 90 % of the optimum, or so many real decisions."""
    trainer, model, _, prompts = fresh_trainer(config)
    held_out = prompts.held_out[:_EVALUATED]
    judge, temperature = make_env(config.env, len(held_out)), config.agent.rollout.temperature
    evaluations: list[tuple[int, float]] = []
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
        evaluated = collect_rollout(judge, TrunkPolicy(model, temperature), generator, options)
        evaluations.append((total, float(episode_returns(evaluated).mean())))
        for fraction in _FRACTIONS:
            recent = _recent(evaluations, 2)
            if len(evaluations) > 1 and str(fraction) not in decisions and recent >= fraction * optimum:
                decisions[str(fraction)] = total
    end = _recent(evaluations, 4)
    return Run(world, arm, config.seed, optimum, decisions, total, first, end, seconds, int(imagined), evaluations)


def _recent(evaluations: list[tuple[int, float]], number: int) -> float:
    return float(np.mean([value for _, value in evaluations[-number:]]))


def read(path: Path) -> list[Run]:
    """Return the runs of a file."""
    if not path.exists():
        return []
    return [Run(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def table(runs: list[Run]) -> str:
    """Return a Markdown table, one row for each world and arm; factors are over PPO of the same seeds."""
    lines = [
        "| world | arm | seeds | decisions to 80 % | factor over PPO | to 90 % | factor over PPO | "
        "after the first reward | end / optimum | CPU s | break-even, ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
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
                f"{_geometric(np.maximum(after, 1)):.0f} | {end:.2f} | {seconds:.0f} | {_break_even(plain, own)} |"
            )
    return "\n".join(lines)


def _geometric(values: Any) -> float:
    return float(np.exp(np.mean(np.log(values))))


def _decisions(own: dict[int, Run], fraction: float) -> str:
    found = [own[seed].until(fraction) for seed in sorted(own)]
    return " ".join(f"{'' if reached else '>'}{number}" for number, reached in found)


def _factor(plain: dict[int, Run], own: dict[int, Run], fraction: float) -> str:
    """Return the geometric mean of PPO's decisions over this arm's, with a 95 % t interval over paired seeds."""
    estimate, low, high, censored = factor(plain, own, fraction)
    if estimate != estimate or plain == own:
        return ""
    if not any(run.until(fraction)[1] for run in own.values()):
        return "none reached it"
    text = f"{estimate:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low < high else "")
    return text + (f" ({_bound(plain, own, fraction)}; {censored} censored)" if censored else "")


def _bound(plain: dict[int, Run], own: dict[int, Run], fraction: float) -> str:
    """Return what censoring makes of the factor: a run that was stopped would have taken more decisions."""
    stopped = [any(not runs[seed].until(fraction)[1] for seed in plain.keys() & own.keys()) for runs in (plain, own)]
    return {(True, False): "at least", (False, True): "at most"}.get((stopped[0], stopped[1]), "no bound")


def factor(plain: dict[int, Run], own: dict[int, Run], fraction: float) -> tuple[float, float, float, int]:
    """Return the factor over PPO, both ends of its 95 % interval, and how many of the paired runs are censored.

    All are NaN without a common seed; with a single one the interval is the estimate.
    """
    seeds = sorted(plain.keys() & own.keys())
    if not seeds:
        return float("nan"), float("nan"), float("nan"), 0
    logs = [np.log(plain[seed].until(fraction)[0] / own[seed].until(fraction)[0]) for seed in seeds]
    censored = sum(not run[seed].until(fraction)[1] for run in (plain, own) for seed in seeds)
    mean, half = float(np.mean(logs)), 0.0
    if len(logs) > 1:
        half = float(stats.t.ppf(0.975, len(logs) - 1) * np.std(logs, ddof=1) / len(logs) ** 0.5)
    return float(np.exp(mean)), float(np.exp(mean - half)), float(np.exp(mean + half)), censored


def _break_even(plain: dict[int, Run], own: dict[int, Run]) -> str:
    """Return the price of a real decision from which the arm is faster, in milliseconds; nothing if it saves none."""
    seeds = sorted(plain.keys() & own.keys())
    if not seeds or plain == own:
        return ""

    def until(runs: dict[int, Run]) -> tuple[float, float]:
        reached = [runs[seed].until(0.8)[0] for seed in seeds]
        spent = [runs[seed].seconds * number / runs[seed].total for seed, number in zip(seeds, reached, strict=True)]
        return _geometric(reached), _geometric(spent)

    (plain_decisions, plain_seconds), (decisions, seconds) = until(plain), until(own)
    if decisions >= plain_decisions or not all(own[seed].until(0.8)[1] for seed in seeds):
        return "never seen"
    return f"{max(0.0, 1000 * (seconds - plain_seconds) / (plain_decisions - decisions)):.1f}"


def draw(runs: list[Run], path: Path) -> None:
    """Draw each world's factors over PPO, a row an arm, with its 95 % interval and its seeds.

    Hollow where runs were stopped: the mark points to where the true factor lies, and is a diamond where both were.
    """
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    marks = {"": "o", "at least": ">", "at most": "<", "no bound": "d"}
    labels: list[str] = []
    for colour, world in enumerate(dict.fromkeys(run.world for run in runs)):
        by_arm = {arm: {r.seed: r for r in runs if (r.world, r.arm) == (world, arm)} for arm in ARMS}
        plain = by_arm.pop("ppo")
        for arm, own in by_arm.items():
            seeds = plain.keys() & own.keys()
            if not seeds:
                continue
            labels.append(f"{world}: {arm} ({len(seeds)})")
            if not any(own[seed].until(0.8)[1] for seed in seeds):
                until = min(own[seed].total for seed in seeds)
                axes.text(1.05, len(labels) - 1, f"not reached in {until:,} decisions", va="center", fontsize=8)
                continue
            estimate, low, high, censored = factor(plain, own, 0.8)
            place, mark = len(labels) - 1, marks[_bound(plain, own, 0.8) if censored else ""]
            axes.plot([low, high], [place, place], color=f"C{colour}", linewidth=2, alpha=0.5)
            axes.plot([estimate], [place], mark, color=f"C{colour}", markerfacecolor="white" if censored else None)
    figure.set_size_inches(7.5, 0.7 + 0.27 * len(labels))
    axes.axvline(1, color="0.5", linewidth=1)
    axes.set_xscale("log")
    ticks = [0.25, 0.5, 1, 2, 4, 8, 16]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(0.2, 20)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("fewer real decisions than PPO to 80 % of the optimum, times")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run what is not in the file yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", default=["frozen_lake"], help="env= options")
    parser.add_argument("--optimum", type=float, default=1.0, help="the best mean return in these worlds")
    parser.add_argument("--arms", nargs="+", default=["ppo", "episodes"], choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    parser.add_argument("--limit", type=int, default=20_000, help="real decisions of a run")
    parser.add_argument("--out", type=Path, default=Path("runs/imagined_worlds.jsonl"))
    parser.add_argument("--figure", type=Path, help="draw what --out holds into this file")
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
    runs = read(arguments.out)
    print(table(runs))
    if arguments.figure is not None:
        draw(runs, arguments.figure)


if __name__ == "__main__":
    main()
