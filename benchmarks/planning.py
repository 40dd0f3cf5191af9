"""Does planning pay? Success against simulations, and against what else the same trunk tokens buy.

    python benchmarks/planning.py --out runs/planning --seeds 0 1 2             # trains nine small models, then answers
    python benchmarks/planning.py --out runs/planning --figure docs/pictures/planning.png    # of what is there

For each task and seed a model is trained from scratch: a warm start, then PPO with the heads and world heads beside. On
held-out prompts it answers greedily, by a draw, by search (Gumbel's and PUCT) over its heads and over its trunk, by a
beam, and by the best of several draws, with N simulations, or N + 1 texts, so that the columns cost the same trunk
tokens where the trunk is asked at all.

**Exact rewards.** The same search over the trunk, where an answer that has ended is worth what the task's scorer gives
it, and only texts that go on have the model's value. It shows what the value and reward heads cost a search. Like the
best of N by the scorer it asks the scorer, which no other way does.

**Equal seconds.** Ways are timed in seconds of the process, and each search stands beside the best, by the scorer, of
as many draws as take as long.

Intervals are over the seeds of training, 90 %, Student's t for fewer than ten; differences from greedy are paired by
seed. A run that is done is not trained again, and an answer that is in ``answers.jsonl`` is not given again.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from worldmtp.agents.answers import Answering, Answers
from worldmtp.agents.search_config import SCALES, ActingSearch
from worldmtp.cli.arguments import load_model, model_directory, run_config
from worldmtp.cli.evaluate import environment_of
from worldmtp.dynamics import make_world_model
from worldmtp.dynamics.protocol import Prediction
from worldmtp.dynamics.states import StateTable
from worldmtp.envs import TextVectorEnv
from worldmtp.random import stream_seed
from worldmtp.search import SearchConfig
from worldmtp.statistics import bootstrap_interval
from worldmtp.training.make import make_env

TASKS: dict[str, tuple[str, ...]] = {
    "spell_backward": (
        "env=spell_backward",
        "+env.kwargs={task_kwargs: {dataset: spell_backward, min_word_len: 3, max_word_len: 4, reward: exact}}",
        "sft.num_demonstrations=5000",
    ),
    "chain_sum": (
        "env=chain_sum",
        '+env.kwargs={task_kwargs: {dataset: chain_sum, min_terms: 2, max_terms: 3, max_digits: 1, drop: " "}}',
        "sft.num_demonstrations=2000",
    ),
    # Three digits, each once, by plus and minus to the target: 2,3,9:8= is answered by 9+2-3, or in another order.
    "countdown": (
        "env=countdown",
        '+env.kwargs={task_kwargs: {num_numbers: 3, operators: "+-", reward: exact}}',
        "sft.num_demonstrations=2000",
    ),
}
SETTINGS = (
    *("profile=cpu_smoke", "imagination=counterfactual", "imagination.max_rung=0", "sft.num_steps=150"),
    *("model.config.hidden_size=64", "model.config.intermediate_size=192", "model.config.num_hidden_layers=2"),
    *("model.config.head_dim=16", "agent.rollout.num_iterations=20", "agent.rollout.num_prompts=32"),
    *("agent.ppo.learning_rate=3e-4", "world_model.num_updates=6", "world_model.batch_size_episodes=64"),
    *("eval.every_iterations=1000", "checkpoint.every_iterations=20", "eval.num_prompts=64"),
)
DYNAMICS = ("heads", "trunk", "trunk, exact rewards")
DRAWS, MOST_DRAWS = "draws", 256


def train(run_dir: Path, task: str, seed: int) -> None:
    """One run, unless it is done; its output goes to a log beside it."""
    if (run_dir / "DONE").exists():
        return
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    start = "from worldmtp.cli.train import main; main()"
    command = [sys.executable, "-c", start, *TASKS[task], *SETTINGS, f"seed={seed}", f"hydra.run.dir={run_dir}"]
    with run_dir.with_suffix(".log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)


@dataclass(frozen=True)
class Scored(StateTable):
    """States of the trunk, whose answer each is, its tokens so far, and what it is paid once it is over."""

    inner: Any
    rows: Int[Tensor, " state"]
    answers: Int[Tensor, "state token"]
    lengths: Int[Tensor, " state"]
    is_over: Bool[Tensor, " state"]
    paid: Float[Tensor, " state"]

    @property
    def latent(self) -> Float[Tensor, "state hidden"]:
        """The trunk's."""
        latent: Tensor = self.inner.latent
        return latent


class ExactRewards:
    """The trunk as its own world model, whose answers are paid by the task's scorer; for the live rows of ``env``."""

    action_conditional, max_horizon, models_replies = True, None, False

    def __init__(self, oracle: Any, env: TextVectorEnv, prompts: Sequence[int]) -> None:
        self._oracle, self._env, self._prompts = oracle, env, torch.tensor(prompts)

    def encode(self, input_ids: Tensor, attention_mask: Tensor, *rest: Any) -> Scored:
        """Return the states of the live rows' texts, none of which is over."""
        rows = torch.from_numpy(np.nonzero(~self._env.done)[0])
        start, length = self._prompts[rows], attention_mask.sum(dim=1)
        place = start[:, None] + torch.arange(self._env.dataset.max_new)
        answers = input_ids.gather(1, place.clamp_max(input_ids.shape[1] - 1))
        nothing = torch.zeros(len(rows))
        inner = self._oracle.encode(input_ids, attention_mask, *rest)
        return Scored(inner, rows, answers, length - start, nothing.bool(), nothing)

    def step(self, state: Scored, tokens: Int[Tensor, " state"]) -> Scored:
        """Write a token behind each answer that is not over; what ends is scored."""
        max_new = self._env.dataset.max_new
        place = state.lengths.clamp_max(max_new - 1)[:, None]
        answers = torch.where(state.is_over[:, None], state.answers, state.answers.scatter(1, place, tokens[:, None]))
        lengths = torch.where(state.is_over, state.lengths, state.lengths + 1)
        ends = ~state.is_over & ((tokens == self._env.tokenizer.eos_id) | (lengths == max_new))
        paid = torch.zeros_like(state.paid)
        if bool(ends.any()):
            texts = [text[:length].numpy() for text, length in zip(answers[ends], lengths[ends].tolist(), strict=True)]
            paid[ends] = torch.from_numpy(self._env.worth(state.rows[ends].numpy(), texts)).to(paid)
        return Scored(self._oracle.step(state.inner, tokens), state.rows, answers, lengths, state.is_over | ends, paid)

    def predict(self, state: Scored, with_logits: bool = True) -> Prediction:
        """Return what the trunk says, but of rewards and ends what is so."""
        said: Prediction = self._oracle.predict(state.inner, with_logits)
        going = (~state.is_over).to(said.value)
        return replace(said, reward=state.paid.to(said.value), continuation=going, value=said.value * going)


def ways(
    answering: Answering, budgets: Sequence[int], scales: Sequence[str]
) -> Iterator[tuple[str, int, Callable[[], Answers]]]:
    """Yield name and budget of every way to answer, and how."""
    yield "greedy", 0, answering.greedy
    yield "sampled", 0, answering.sampled
    prompts = [len(answering.env.tokenizer.encode(example.prompt)) for example in answering.examples]
    for budget in budgets:
        for rule, dynamics, scale in itertools.product(("gumbel", "puct"), DYNAMICS, scales):
            backend = "mtp" if dynamics == "heads" else "oracle"
            how = ActingSearch(rule, backend, SearchConfig(budget), scale)
            exact = None
            if dynamics == DYNAMICS[2]:
                oracle = make_world_model("oracle", answering.model, torch.Generator())
                exact = ExactRewards(oracle, answering.env, prompts)
            name = f"{rule}, {dynamics}" + ("" if scale == "node" else f", by {scale}")
            yield name, budget, lambda how=how, exact=exact: answering.searched(how, exact)
        yield "beam", budget, lambda budget=budget: answering.beam(budget + 1)
        for place, name in enumerate(("best of N, scorer", "best of N, own rewards")):
            yield name, budget, lambda budget=budget, place=place: answering.best_of(budget + 1)[place]


def answer(
    run_dir: Path, task: str, seed: int, budgets: Sequence[int], scales: Sequence[str], num_prompts: int, file: Path
) -> None:
    """Answer the held-out prompts in every way that is not in the file yet."""
    records = read(file)
    done = {(one["way"], one["budget"]) for one in records if (one["task"], one["seed"]) == (task, seed)}
    config = run_config(run_dir)
    assert config is not None  # a run has one
    directory = model_directory(run_dir, "--model")
    env = environment_of(config, directory, config.env.id, {})
    model = load_model(directory, "cpu")
    examples = make_env(env, 1).examples("heldout", num_prompts, seed, "evaluation", fewer=True)
    rows = make_env(env, len(examples))
    model.limit_tokens(rows.tokenizer.vocab_size)
    answering = Answering(model, rows, examples, 1.0, stream_seed(seed, "evaluation"))
    answering.sampled()  # what the first call alone takes is nobody's
    common = {"task": task, "seed": seed, "prompts": len(examples)}
    for name, budget, how in ways(answering, budgets, scales):
        if (name, budget) in done:
            continue
        start = time.process_time()
        found = how()
        record = common | {"way": name, "budget": budget, "cpu": (time.process_time() - start) / len(examples)}
        record |= {"exact": float(found.exact.float().mean()), "tokens": found.trunk_tokens, "seconds": found.seconds}
        _add(file, record)
    if (DRAWS, 0) not in done:
        own = [one for one in read(file) if (one["task"], one["seed"]) == (task, seed) and is_search(one["way"])]
        _add(file, common | drawn(answering, max(one["cpu"] for one in own)))


def is_search(way: str) -> bool:
    """Return whether a way to answer is a search."""
    return way.startswith(("gumbel", "puct"))


def drawn(answering: Answering, seconds: float) -> dict[str, Any]:
    """Return what the best of 1, 2, .. draws by the scorer is right in, until they have taken so long, a prompt."""
    exact, scores, took = [], [], 0.0
    while took < seconds and len(exact) < MOST_DRAWS:
        start = time.process_time()
        seed = stream_seed(answering.seed, f"draw {len(exact)}")
        found = replace(answering, seed=seed).sampled()
        took += (time.process_time() - start) / len(found.score)
        exact.append(found.exact.float())
        scores.append(found.score)
    right = [
        float(torch.stack(exact[:number]).gather(0, torch.stack(scores[:number]).argmax(dim=0)[None]).mean())
        for number in range(1, len(exact) + 1)
    ]
    return {"way": DRAWS, "budget": 0, "exact": right[0], "best_of": right, "cpu": took / len(exact)}


def _add(file: Path, record: dict[str, Any]) -> None:
    with file.open("a") as opened:
        opened.write(json.dumps(record) + "\n")
    print(record, flush=True)


def read(file: Path) -> list[dict[str, Any]]:
    """Return the answers that are there."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half-width of its interval over seeds; NaN for one value."""
    if len(values) == 1:
        return values[0], np.nan
    found = bootstrap_interval(np.asarray(values), generator=0, unit="seed")
    return found.estimate, (found.high - found.low) / 2


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return the table, a row for each task, way and budget; searches beside the draws that take as many seconds."""
    lines = [
        "| task | way | N | trunk tokens | exact match, seeds | mean | beside greedy | CPU ms a prompt | best of |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    answers = [one for one in records if one["way"] != DRAWS]
    keys = dict.fromkeys((one["task"], one["way"], one["budget"]) for one in sorted(answers, key=_order))
    by_seed = {(one["task"], one["way"], one["budget"], one["seed"]): one for one in records}
    for task, way, budget in keys:
        rows = [one for one in answers if (one["task"], one["way"], one["budget"]) == (task, way, budget)]
        rows.sort(key=lambda one: one["seed"])
        mean, width = interval([one["exact"] for one in rows])
        beside = [one["exact"] - by_seed[task, "greedy", 0, one["seed"]]["exact"] for one in rows]
        gain, gain_width = interval(beside)
        each = " ".join(f"{one['exact']:.3f}" for one in rows)
        tokens, seconds = (np.mean([one[name] for one in rows]) for name in ("tokens", "cpu"))
        spread = f"{gain:+.3f} [{gain - gain_width:+.3f}, {gain + gain_width:+.3f}]" if way != "greedy" else ""
        drawn = [by_seed[task, DRAWS, 0, one["seed"]] for one in rows] if is_search(way) else []
        lines.append(
            f"| {task} | {way} | {budget or ''} | {tokens:.0f} | {each} | {mean:.3f} ± {width:.3f} | {spread} | "
            f"{1000 * seconds:.1f} | {_in_as_long(rows, drawn) if drawn else ''} |"
        )
    return "\n".join(lines)


def _in_as_long(searches: Sequence[dict[str, Any]], drawn: Sequence[dict[str, Any]]) -> str:
    """Return how many draws took as long as a search, by seed, their best by the scorer, and the search's less that."""
    numbers, best = [], []
    for search, draws in zip(searches, drawn, strict=True):
        number = in_as_long(search["cpu"], draws)
        numbers.append(number)
        best.append(draws["best_of"][number - 1])
    gain, width = interval([search["exact"] - one for search, one in zip(searches, best, strict=True)])
    return f"{numbers}: {np.mean(best):.3f}, {gain:+.3f} [{gain - width:+.3f}, {gain + width:+.3f}]"


def in_as_long(seconds: float, draws: dict[str, Any]) -> int:
    """Return how many whole draws fit into so many seconds; at least one, and no more than were drawn."""
    return min(max(1, int(seconds / draws["cpu"])), len(draws["best_of"]))


def _order(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["task"], record["budget"] > 0, record["way"], record["budget"]


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw success against simulations, a panel a task; bands are the t intervals over seeds."""
    records = [one for one in records if one["way"] != DRAWS]
    tasks = sorted({one["task"] for one in records})
    figure = Figure(layout="constrained", figsize=(5.2 * len(tasks), 4.2))
    styles = {"heads": "-", "trunk": "--", "trunk, exact rewards": ":"}
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for name in dict.fromkeys(one["way"] for one in sorted(records, key=_order)):
            found = {one["budget"] for one in records if (one["task"], one["way"]) == (task, name)}
            budgets = sorted(found)
            points = [
                interval([o["exact"] for o in records if (o["task"], o["way"], o["budget"]) == (task, name, budget)])
                for budget in budgets
            ]
            means, widths = np.array(points).T
            if budgets == [0]:
                axes.axhline(means[0], color="black" if name == "greedy" else "gray", lw=1, label=name)
                continue
            rule, _, dynamics = name.removesuffix(", by returns").partition(", ")
            color = {"gumbel": "C0", "puct": "C1", "beam": "C2"}.get(rule, "C3" if "scorer" in name else "C4")
            style = styles.get(dynamics, "-.")
            axes.plot(budgets, means, style, color=color, marker="o", ms=3, label=name)
            axes.fill_between(budgets, means - widths, means + widths, color=color, alpha=0.06, lw=0)
        axes.set(title=task, xlabel="simulations, or texts less one", xscale="log", ylabel="exact match, held out")
        ticks = sorted({one["budget"] for one in records} - {0})
        axes.set_xticks(ticks, [str(budget) for budget in ticks])
        axes.minorticks_off()
    axes.legend(fontsize=7, handlelength=4, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train, answer, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/planning"))
    add("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    add("--seeds", type=int, nargs="*", default=[])
    add("--budgets", type=int, nargs="+", default=[4, 16, 64])
    add("--scales", nargs="+", default=[ActingSearch.scale], choices=SCALES, help="what Q values are measured by")
    add("--num-prompts", type=int, default=128)
    add("--figure", type=Path, help="draw what --out holds into this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    out = given.out.resolve()
    file = out / "answers.jsonl"
    for seed in given.seeds:
        for task in given.tasks:
            run_dir = out / task / str(seed)
            train(run_dir, task, seed)
            answer(run_dir, task, seed, given.budgets, given.scales, given.num_prompts, file)
    records = read(file)
    print(table(records))
    if given.figure is not None:
        draw(records, given.figure)


if __name__ == "__main__":
    main()
