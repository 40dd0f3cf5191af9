"""Does imagination pay on the quickstart task? The same environment, seeds and budget, one table.

    python benchmarks/imagination_arms.py --seeds 0 1 2 3 4 --jobs 2 --out runs/arms
    python benchmarks/imagination_arms.py --arms "counterfactual, scored by heads" --out runs/scored -- model.depth=7

Each seed has one warm start, shared by its arms, so arms are paired. A run that is already done is not repeated. The
unit of resampling is the seed; five of them give wide t intervals, and the table shows every seed beside them.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldmtp.statistics import paired_difference
from worldmtp.tracking import read_records

ARMS: dict[str, tuple[str, ...]] = {
    "off (GAE)": ("imagination=off",),
    "off (shrunk group baseline)": ("imagination=off", "agent=ppo_group"),
    "counterfactual": ("imagination=counterfactual",),
    "counterfactual, no tail": ("imagination=counterfactual", "imagination.tail=false"),
    "counterfactual, heads' learner as before": (
        "imagination=counterfactual",
        "world_model.learning_rate=1e-3",
        "world_model.warmup_updates=0",
        "world_model.ce_coef=1",
        "world_model.kl_coef=0",
        "world_model.detach_world_heads=false",
    ),
    "counterfactual, rung 0 only": ("imagination=counterfactual", "imagination.max_rung=0"),
    "counterfactual, scored by trunk": (
        "imagination=counterfactual",
        "imagination.max_rung=0",
        "imagination.completions=trunk",
    ),
    "counterfactual, scored by heads": (
        "imagination=counterfactual",
        "imagination.max_rung=0",
        "imagination.completions=heads",
    ),
    "off, four times the answers": ("imagination=off", "agent=ppo_group", "agent.rollout.num_prompts=128"),
    "counterfactual, shuffled": ("imagination=counterfactual", "world_model=shuffled"),
    "baseline": ("imagination=baseline",),
    "latent": ("imagination=latent",),
    "latent, shuffled": ("imagination=latent", "world_model=shuffled", "imagination.latent.gated=false"),
    "search": ("imagination=search",),
    "search, corrected": ("imagination=search", "imagination.search.corrected=true"),
    "search, shuffled": ("imagination=search", "world_model=shuffled", "imagination.search.gated=false"),
}
"""Name to overrides. Rung 0 of the critic imagines nothing: it reads the surprisals of the real forward."""
ON_DEMAND = ("counterfactual, scored by heads", "off, four times the answers")
"""Run where they are named: the heads that write whole answers need ``model.depth=7``, for all arms, as an override."""

LAST_ITERATIONS = 40
"""r2, slope and agreement are means over the last iterations."""
FIRST_ITERATIONS = 10
"""Agreement stands beside its mean over the first."""


@dataclass(frozen=True)
class Outcome:
    """One arm and seed, on the held-out prompts."""

    exact_before: float
    exact: float
    sampled_before: float
    sampled: float
    r2: float | None
    slope: float | None
    seconds: float
    overlap: float
    rungs: dict[int, float]
    """r2 of each rung of the critic ladder on fresh batches, mean over the second half of the run."""
    action_shuffle_ratio: float | None
    accept: tuple[float, ...]
    """Acceptance of depths 2 .. K on held-out answers, after training."""
    imagined: float
    realized: float
    correlation: float | None
    agreement: tuple[str, ...]
    """Agreement of depths 2 .. K with the trunk on fresh batches, means of the first and the last iterations."""
    norm_ratio: float | None
    """Squared norm of the policy's gradient over that of its control, where it was measured."""


def train(run_dir: Path, overrides: tuple[str, ...], extra: tuple[str, ...]) -> None:
    """One run, unless it is done; its output goes to a log beside it."""
    if (run_dir / "DONE").exists():
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    start = "from worldmtp.cli.train import main; main()"
    command = [sys.executable, "-c", start, "experiment=quickstart", "profile=cpu_smoke"]
    command += ["imagination.gradient_norm_every=10"]  # each costs as much as two epochs
    command += [f"hydra.run.dir={run_dir}", *overrides, *extra]
    with (run_dir / "log.txt").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)


def outcome(run_dir: Path) -> Outcome:
    """What a run measured."""
    records = read_records(run_dir / "metrics.jsonl")
    judged = [record for record in records if "eval/exact_lo90" in record]
    steps = [record for record in records if "time/total_seconds" in record]

    def mean(tag: str, num_last: int = LAST_ITERATIONS, records: Sequence[Mapping[str, Any]] = steps) -> float | None:
        values = [record[tag] for record in records[-num_last:] if record.get(tag) is not None]
        return float(np.mean(values)) if values else None

    def change(tag: str) -> str:
        return f"{_mean([mean(tag, records=steps[:FIRST_ITERATIONS])])}>{_mean([mean(tag)])}"

    known = {tag for record in steps for tag in record}
    rungs = [mean(f"imagination/rung_{rung}/r2", len(steps) // 2) for rung in range(4)]
    depths = sorted(tag for tag in judged[-1] if re.fullmatch(r"world_model/depth_[2-9]/accept", tag))

    return Outcome(
        exact_before=judged[0]["eval/exact"],
        exact=judged[-1]["eval/exact"],
        sampled_before=judged[0]["eval/exact_sampled"],
        sampled=judged[-1]["eval/exact_sampled"],
        r2=mean("imagination/r2"),
        slope=mean("imagination/slope"),
        seconds=sum(record["time/total_seconds"] for record in steps),
        overlap=next(
            record["rollout/prompt_overlap_sft"] for record in records if "rollout/prompt_overlap_sft" in record
        ),
        rungs={rung: r2 for rung, r2 in enumerate(rungs) if r2 is not None},
        action_shuffle_ratio=mean("world_model/action_shuffle_loss_ratio", len(steps)),
        accept=tuple(judged[-1][tag] for tag in depths),
        imagined=judged[-1]["eval/return_imagined"],
        realized=judged[-1]["eval/return_realized"],
        correlation=judged[-1].get("eval/return_corr"),
        agreement=tuple(
            change(tag) for tag in sorted(known) if re.fullmatch(r"world_model/depth_[2-9]/agreement", tag)
        ),
        norm_ratio=mean("imagination/gradient_norm_ratio"),
    )


def main() -> None:
    """Run all arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    usual = [arm for arm in ARMS if arm not in ON_DEMAND]
    parser.add_argument("--arms", nargs="+", default=usual, choices=list(ARMS))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/arms"))
    parser.add_argument("overrides", nargs="*", help="further overrides of every run")
    arguments = parser.parse_args()
    out, extra = arguments.out.resolve(), tuple(arguments.overrides)
    start = time.monotonic()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        warm = {seed: out / "warm_start" / f"seed{seed}" for seed in arguments.seeds}
        nothing = ("imagination=off", "agent.rollout.num_iterations=0")
        # Behind the user's own overrides, which may have a number of iterations.
        list(pool.map(lambda seed: train(warm[seed], (), (f"seed={seed}", *extra, *nothing)), arguments.seeds))
        jobs = [(arm, seed) for seed in arguments.seeds for arm in arguments.arms]
        runs = {(arm, seed): out / re.sub(r"\W+", "_", arm).strip("_") / f"seed{seed}" for arm, seed in jobs}
        list(
            pool.map(
                lambda job: train(
                    runs[job], ARMS[job[0]], (f"seed={job[1]}", f"sft.load={warm[job[1]]}/sft/model", *extra)
                ),
                jobs,
            )
        )
    outcomes = {job: outcome(run_dir) for job, run_dir in runs.items()}
    print(table(outcomes, arguments.arms, arguments.seeds))
    print(f"\n{world_model_table(outcomes, arguments.arms, arguments.seeds)}")
    print(f"\n{time.monotonic() - start:.0f} s, prompt overlap {max(o.overlap for o in outcomes.values())}")
    (out / "outcomes.json").write_text(
        json.dumps([{"arm": arm, "seed": seed, **vars(value)} for (arm, seed), value in outcomes.items()], indent=2)
    )


def table(outcomes: dict[tuple[str, int], Outcome], arms: list[str], seeds: list[int]) -> str:
    """A Markdown table, one row an arm; gains are paired by seed, over the warm start and over the first arm."""
    header = "| arm | sampled: per seed | gain over SFT | over the first arm | greedy: per seed | gain over SFT | r2 | "
    lines = [header + "slope | s |", "|---|---|---|---|---|---|---|---|---|"]
    first = [outcomes[arms[0], seed] for seed in seeds]
    before = f"{_each([o.sampled_before for o in first])} | | | {_each([o.exact_before for o in first])}"
    lines.append(f"| SFT | {before} | | | | |")
    for arm in arms:
        row = [outcomes[arm, seed] for seed in seeds]
        sampled = _gain([o.sampled for o in row], [o.sampled_before for o in row])
        beside = "" if arm == arms[0] else _gain([o.sampled for o in row], [o.sampled for o in first])
        greedy = _gain([o.exact for o in row], [o.exact_before for o in row])
        skill = f"{_mean([o.r2 for o in row])} | {_mean([o.slope for o in row])}"
        seconds = np.mean([o.seconds for o in row])
        lines.append(
            f"| {arm} | {_each([o.sampled for o in row])} | {sampled} | {beside} | {_each([o.exact for o in row])} | "
            f"{greedy} | {skill} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def world_model_table(outcomes: dict[tuple[str, int], Outcome], arms: list[str], seeds: list[int]) -> str:
    """What each arm's world model knows, one row an arm and seed."""
    header = "| arm | seed | r2 of rungs | norm ratio | action-shuffle ratio | agreement d2 d3 d4: first>last | "
    header += "accept d2 d3 d4 | imagined / realized (r) |"
    lines = [header, "|---|---|---|---|---|---|---|---|"]
    for arm in arms:
        for seed in seeds:
            row = outcomes[arm, seed]
            correlation = "" if row.correlation is None else f" ({row.correlation:.2f})"
            rungs = ", ".join(f"{rung}: {r2:.3f}" for rung, r2 in row.rungs.items())
            heads = f"{_mean([row.action_shuffle_ratio])} | {' '.join(row.agreement)} | {_each(list(row.accept))}"
            lines.append(
                f"| {arm} | {seed} | {rungs} | {_mean([row.norm_ratio])} | {heads} | "
                f"{row.imagined:.2f} / {row.realized:.2f}{correlation} |"
            )
    return "\n".join(lines)


def _each(values: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.2f}" if known else ""


def _gain(after: list[float], before: list[float]) -> str:
    if len(after) < 2:
        return f"{after[0] - before[0]:+.3f}"
    interval = paired_difference(np.array(after), np.array(before), generator=0, unit="seed")
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


if __name__ == "__main__":
    main()
