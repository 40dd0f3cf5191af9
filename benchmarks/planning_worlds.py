"""Does planning through replies pay? Success of half-trained policies in worlds, against simulations.

    python benchmarks/planning_worlds.py --seeds 0 1 2 --out runs/planning_worlds.jsonl    # trains, plays, prints
    python benchmarks/planning_worlds.py --out runs/planning_worlds.jsonl                  # the table of what is there

For each world and seed a policy is trained by PPO on 12, 16 or 24 batches of 16 real episodes, and a model of replies
beside it on the same episodes: ``imagination=episodes`` with its gate shut, so that nothing imagined has taught the
policy. Then the policy plays held-out episodes greedily, by a draw, and by a search that goes on through the replies,
Gumbel's and PUCT, by the model of replies and in the real world, with so many simulations a move. All read texts by the
same trunk and its value head, and discount as PPO does.

The real world knows what is hidden. In GuessNumber that is the number, so that a search there sees which guess hits: it
is a bound and no way to play; so is GridWorld's, whose map is hidden. The lakes hide nothing, and their slips to come
are thrown anew in every simulation.

Returns are of 32 games a seed (8 of the lake where nothing slips), the same for all ways, slips included where moves
are the same. Seconds are the process's, and beside them stands how many whole games the policy draws in as many.
Intervals are over the seeds of training, 90 %, Student's t; differences from greedy are paired by seed. A line of
``--out`` is not made again.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch

from worldmtp.agents.answers import Answering, Answers
from worldmtp.agents.imagination.reply_models import saved_replies
from worldmtp.agents.search_config import SCALES, ActingSearch
from worldmtp.cli.schema import build, register
from worldmtp.dynamics.conversations import ForeseenReplies
from worldmtp.search import SearchConfig
from worldmtp.statistics import bootstrap_interval
from worldmtp.training.config import TrainConfig
from worldmtp.training.make import make_env
from worldmtp.training.trainers import fresh_trainer


@dataclass(frozen=True)
class Setting:
    """How a world is trained in and played: batches of 16 real episodes, games, simulations a move, overrides."""

    num_batches: int
    num_games: int
    budgets: tuple[int, ...]
    overrides: tuple[str, ...] = ()


# A text of 40 tokens is cut off after 13 moves, each with its reply; 6 are the shortest way. What is heard last is all
# that a lake has, so that no second model of replies is learnt that reads the history.
_LAKE = ("+env.kwargs.max_new=40", "world_model.replies.context=turn")
WORLDS = {
    "guess_number": Setting(12, 32, (2, 4, 8, 16, 32)),
    "grid_world": Setting(24, 32, (4, 16)),
    "frozen_lake_slippery": Setting(16, 32, (4, 16), _LAKE),
    "frozen_lake": Setting(16, 8, (4, 16), _LAKE),  # where nothing slips, all greedy games are one
}
"""By name of the ``env`` option."""

_SHUT = (
    *("imagination=episodes", "imagination.episodes.novelty_bonus=0", "imagination.episodes.max_disagreement=0"),
    "world_model.num_updates=0",  # the heads are not asked
)
_WIDTH = 10
"""Moves of the widest world: ten digits."""


def trained(world: str, seed: int, setting: Setting) -> tuple[Answering, float]:
    """Return a policy after so many batches, with its model of replies and held-out episodes, and its values' gamma."""
    with hydra.initialize_config_module("worldmtp.configs", version_base="1.3"):
        config = build(
            TrainConfig, hydra.compose("train", [f"env={world}", f"seed={seed}", *_SHUT, *setting.overrides])
        )
    trainer, model, env, prompts = fresh_trainer(config)
    for _ in range(setting.num_batches):
        trainer.step()
    assert trainer.episodes is not None  # asked for
    replies = ForeseenReplies(*saved_replies(trainer.episodes.state_dict(), env, model, config.world_model))
    examples = [prompts.held_out[number % len(prompts.held_out)] for number in range(setting.num_games)]
    answering = Answering(model.eval(), make_env(config.env, setting.num_games), examples, 1.0, seed, replies)
    return answering, config.agent.ppo.gamma


def ways(
    answering: Answering, gamma: float, budgets: Sequence[int], scale: str
) -> Iterator[tuple[str, int, Callable[[], Answers]]]:
    """Yield name and simulations of every way to play, and how."""
    yield "greedy", 0, answering.greedy
    yield "sampled", 0, answering.sampled
    for dynamics in ("replies", "world"):
        for rule in ("gumbel", "puct"):
            for budget in budgets:
                how = ActingSearch(rule, dynamics, SearchConfig(budget, width=_WIDTH, gamma=gamma), scale)
                name = f"{rule}, {dynamics}" + ("" if scale == "node" else f", by {scale}")
                yield name, budget, lambda how=how: answering.searched(how)


def play(world: str, seed: int, scale: str, file: Path) -> None:
    """Add what is missing of a world and seed to the file."""
    done = {(one["way"], one["budget"]) for one in read(file) if (one["world"], one["seed"]) == (world, seed)}
    start = time.process_time()
    setting = WORLDS[world]
    answering, gamma = trained(world, seed, setting)
    answering.sampled()  # what the first call alone takes is nobody's
    print(f"{world}, seed {seed}: trained, {time.process_time() - start:.0f} s of CPU", flush=True)
    for way, budget, how in ways(answering, gamma, setting.budgets, scale):
        if (way, budget) in done:
            continue
        start = time.process_time()
        found = how()
        record = {"world": world, "seed": seed, "way": way, "budget": budget, "score": float(found.score.mean())}
        record |= {"exact": float(found.exact.float().mean()), "tokens": found.trunk_tokens}
        record["seconds"] = (time.process_time() - start) / len(found.score)
        with file.open("a") as opened:
            opened.write(json.dumps(record) + "\n")
        print(record, flush=True)


def read(file: Path) -> list[dict[str, Any]]:
    """Return the lines that are there."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and its interval over seeds; NaN for one value."""
    if len(values) == 1:
        return values[0], np.nan, np.nan
    found = bootstrap_interval(np.asarray(values), generator=0, unit="seed")
    return found.estimate, found.low, found.high


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return a row for each world and way, a column for each number of simulations: mean return, and beside greedy."""
    budgets = sorted({one["budget"] for one in records} - {0})
    head = " | ".join(f"N = {one}" for one in budgets)
    lines = [f"| world | way | {head} | trunk tokens, CPU s a game | games drawn |"]
    lines.append("|---" * (len(budgets) + 4) + "|")
    by = {(one["world"], one["way"], one["budget"], one["seed"]): one for one in records}
    for world, way in dict.fromkeys((one["world"], one["way"]) for one in records):
        rows = [one for one in records if (one["world"], one["way"]) == (world, way)]
        cells = []
        for budget in budgets:
            found = [one for one in rows if one["budget"] in (budget, 0)]
            if not found or (found[0]["budget"] == 0 and budget != budgets[0]):
                cells.append("")
                continue
            mean = np.mean([one["score"] for one in found])
            gain, low, high = interval([one["score"] - by[world, "greedy", 0, one["seed"]]["score"] for one in found])
            beside = "" if way == "greedy" else f" {gain:+.2f} [{low:+.2f}, {high:+.2f}]"
            is_clear = way != "greedy" and (low > 0 or high < 0)
            cells.append(f"**{mean:.2f}**{beside}" if is_clear else f"{mean:.2f}{beside}")
        most = max(one["budget"] for one in rows)
        last = [one for one in rows if one["budget"] == most]
        seconds = float(np.mean([one["seconds"] for one in last]))
        games = seconds / np.mean([by[world, "sampled", 0, one["seed"]]["seconds"] for one in last])
        cost = f"{np.mean([one['tokens'] for one in last]):.0f}, {seconds:.2f} | {games:.0f}"
        lines.append(f"| {world} | {way} | " + " | ".join(cells) + f" | {cost} |")
    return "\n".join(lines)


def main() -> None:
    """Train and play what is not in the file yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    parser.add_argument("--scale", default=ActingSearch.scale, choices=SCALES, help="what Q values are measured by")
    parser.add_argument("--out", type=Path, default=Path("runs/planning_worlds.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    register()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for world in arguments.worlds:
        for seed in arguments.seeds:
            play(world, seed, arguments.scale, arguments.out)
    print(table(read(arguments.out)))


if __name__ == "__main__":
    main()
