"""``worldmtp eval --model PATH --env ID``: how well a checkpoint does on an environment, without training.

    worldmtp eval --model runs/quickstart/2026-01-31_12-00-00_seed0 --env worldmtp/SpellBackward-v0
    worldmtp eval --model path/to/checkpoint --env worldmtp/ChainSum-v0 --num-prompts 128 --json
    worldmtp eval --model RUN --env ID --search gumbel --simulations 4 16 --dynamics mtp oracle --best-of 5 17 --beam 5
    worldmtp eval --model RUN --env ID --search gumbel --verify 2
    worldmtp eval --model RUN --env ID --search gumbel --dynamics replies --explain --tree-html trees.html

The third acts by search, by beam search and by the best of several answers, beside greedy and sampled, each with
what it costs. In a world that replies, a search goes on through the replies: of the model of them that a run with
``imagination=episodes`` has learnt, ``--dynamics replies``, or of the real world, ``--dynamics world``. The last one
shows the trees of one search, move by move, with the replies that were drawn in them. A search measures differences of
values by ``--scale`` and discounts by ``--gamma``; without it as the run whose values it reads, and by 1 where there is
no run. The standard error says which. With ``--verify K`` the trunk reads the lines of the K best tokens of a search
over heads, in one forward, and chooses among them anew; how often it chooses another is said beside each search.

The checkpoint is a run, a saved MTPModel or any causal LM of Hugging Face's; the environment speaks its tokenizer.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmtp.agents.search_config import SCALES
from worldmtp.cli.arguments import (
    add_imports,
    add_kwargs,
    check_page,
    import_run_modules,
    load_model,
    model_directory,
    parse_kwargs,
    positive,
    run_config,
    search_discount,
    tell_search,
    whole_seed,
)
from worldmtp.cli.errors import fail_cleanly
from worldmtp.training.config import EnvConfig, TrainConfig
from worldmtp.training.run_dir import MODEL_FOLDER

if TYPE_CHECKING:
    from worldmtp.agents.search_config import ActingSearch
    from worldmtp.model import MTPModel

_NUM_PROMPTS = 512


def main() -> None:
    """Run the command."""
    arguments = _parser().parse_args()
    fail_cleanly(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.temperature < float("inf"):
        raise ValueError(f"--temperature {arguments.temperature} must be positive; greedy answers are counted as well.")
    searches = _searches(arguments)
    explains = arguments.explain or arguments.tree_html is not None
    if explains:
        _check_explained(arguments, searches)
    if arguments.num_prompts is None:
        arguments.num_prompts = 1 if explains else _NUM_PROMPTS
    directory = model_directory(arguments.model, "--model")
    trained = run_config(arguments.model)
    import_run_modules(trained, arguments.imports)
    env = environment_of(trained, directory, arguments.env, parse_kwargs(arguments.kwargs))
    from worldmtp.training.evaluation import evaluate_model

    model = load_model(directory, arguments.device)
    hows = _hows(arguments, model, searches, trained)
    if explains:
        _explain(arguments, model, env, hows[0], directory)
        return
    if hows or arguments.best_of or arguments.beam:
        _compare(arguments, model, env, hows)
        return
    found = evaluate_model(model, env, arguments.num_prompts, arguments.temperature, arguments.seed)
    if arguments.json:
        print(
            json.dumps(
                {"model": str(directory), "env": arguments.env, "seed": arguments.seed} | dataclasses.asdict(found)
            )
        )
        return
    print(
        f"{arguments.env}, {found.num_prompts} held-out prompts, seed {arguments.seed}\n"
        f"  exact match, greedy             {found.exact}\n"
        f"  exact match, temperature {found.temperature:<5g}  {found.exact_sampled}\n"
        f"  score                           {found.score:.3f} greedy, {found.score_sampled:.3f} sampled\n"
        f"  tokens an answer                {found.length_mean:.1f}, {found.truncated_fraction:.3f} of them truncated"
    )


def environment_of(trained: TrainConfig | None, directory: Path, env_id: str, given: dict[str, Any]) -> EnvConfig:
    """Return the environment of a checkpoint.

    It is made with the tokenizer beside the model, then with what the run was trained with where it had this
    environment, its wrappers included, then with what was given.

    Raises:
        ValueError: a tokenizer was given, and the checkpoint's own gives another meaning to its ids.
    """
    from worldmtp.envs.tokenizer import make_tokenizer
    from worldmtp.training.saved_model import check_vocabulary

    same = trained.env if trained is not None and trained.env.id == env_id else EnvConfig(env_id)
    kwargs = {"tokenizer": f"transformers:{directory}"} | same.kwargs | given
    if kwargs["tokenizer"] != f"transformers:{directory}":
        check_vocabulary(directory, make_tokenizer(kwargs["tokenizer"]), "--model")
    return EnvConfig(env_id, kwargs, same.wrappers)


def _searches(arguments: argparse.Namespace) -> list[tuple[str, str, int]]:
    """Return rule, dynamics and simulations of every search that is asked for."""
    if arguments.search is None:
        for name in ("simulations", "dynamics", "depth", "width", "scale", "gamma", "verify"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name} belongs to a search; add --search gumbel or --search puct.")
        return []
    dynamics = arguments.dynamics or ["mtp"]
    return [(arguments.search, which, number) for which in dynamics for number in arguments.simulations or [32]]


def _hows(
    arguments: argparse.Namespace,
    model: "MTPModel",
    searches: list[tuple[str, str, int]],
    trained: TrainConfig | None,
) -> "list[ActingSearch]":
    """Return the searches that are asked for, if the model and its run have what they ask."""
    from worldmtp.agents.search_config import ActingSearch
    from worldmtp.cli.searched import check_values
    from worldmtp.search import SearchConfig

    if searches:
        check_values(model)
    asks_replies = any(dynamics == "replies" for _, dynamics, _ in searches)
    if asks_replies and (trained is None or trained.env.id != arguments.env):
        raise ValueError(
            f"--dynamics replies asks the model of replies that a run has learnt, and {arguments.model} is no run in "
            f"{arguments.env}; give --model a run with imagination=episodes there, or --dynamics world."
        )
    if not searches:
        return []
    gamma, told = search_discount(arguments.gamma, trained)
    scale, hows = arguments.scale or ActingSearch.scale, []
    for rule, dynamics, number in searches:
        tree = SearchConfig(number, arguments.depth, arguments.width or 16, gamma)
        hows.append(ActingSearch(rule, dynamics, tree, scale, arguments.verify or 0))
    tell_search(gamma, told, scale)
    return hows


def _run_dir(arguments: argparse.Namespace) -> Path:
    path: Path = arguments.model
    return path.parent if path.name == MODEL_FOLDER else path


def _compare(arguments: argparse.Namespace, model: "MTPModel", env: EnvConfig, hows: "list[ActingSearch]") -> None:
    from worldmtp.statistics import wilson_interval
    from worldmtp.training.compared_answers import compare_answers

    ways = compare_answers(
        model,
        env,
        arguments.num_prompts,
        arguments.temperature,
        arguments.seed,
        hows,
        arguments.best_of,
        arguments.beam,
        _run_dir(arguments),
    )
    by_way = {how.way: {"scale": how.scale, "gamma": how.tree.discount} for how in hows}
    for number, way in enumerate(ways):
        exact = wilson_interval(int(way.exact.sum()), len(way.exact), unit="prompt")
        if arguments.json:
            numbers = {"score": float(way.score.mean()), "trunk_tokens": way.trunk_tokens, "seconds": way.seconds}
            record = {"way": way.way, "exact": dataclasses.asdict(exact)} | numbers | by_way.get(way.way, {})
            if way.verified is not None:
                record["verified"] = dataclasses.asdict(way.verified)
            print(json.dumps(record), flush=True)
            continue
        if number == 0:
            print(
                f"{arguments.env}, {len(way.exact)} held-out prompts, seed {arguments.seed}, temperature "
                f"{arguments.temperature:g}\n{'':48}exact match           score   trunk tokens   seconds (a prompt)"
            )
        share = f"{exact.estimate:.3f} [{exact.low:.3f}, {exact.high:.3f}]"
        numbers_text = f"{float(way.score.mean()):6.3f} {way.trunk_tokens:14.1f} {way.seconds:9.3f}"
        print(f"  {way.way:<46}{share}  {numbers_text}", flush=True)
        if way.verified is not None:
            print(
                f"    the trunk chose another token in {way.verified.overturned:.3f} of {way.verified.decisions} "
                f"decisions; it moved Q values by {way.verified.q_change:.3f} on average"
            )


def _check_explained(arguments: argparse.Namespace, searches: list[tuple[str, str, int]]) -> None:
    """Raise ValueError if what is to be explained is not one search."""
    option = "--explain" if arguments.explain else "--tree-html"
    if not searches:
        raise ValueError(f"{option} shows the trees of a search; add --search gumbel or --search puct.")
    if len(searches) > 1:
        raise ValueError(
            f"{option} shows one search, and {len(searches)} were asked for; give one number of --simulations and one "
            "--dynamics."
        )
    for name in ("json", "best_of", "beam"):
        if getattr(arguments, name):
            raise ValueError(f"{option} shows trees and compares nothing; leave out --{name.replace('_', '-')}.")
    check_page(arguments.tree_html, "--tree-html")


def _explain(
    arguments: argparse.Namespace, model: "MTPModel", env: EnvConfig, how: "ActingSearch", directory: Path
) -> None:
    from worldmtp.cli.searched import show_explained
    from worldmtp.training.compared_answers import explain_answers
    from worldmtp.training.saved_model import load_tokenizer

    options = arguments.num_prompts, how, arguments.temperature, arguments.seed, _run_dir(arguments)
    found = explain_answers(model, env, *options)
    show_explained(found, load_tokenizer(directory), arguments.env, arguments.explain, arguments.tree_html)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="worldmtp eval",
        description="Evaluate a checkpoint on held-out prompts of an environment, without training.",
        epilog="example: worldmtp eval --model RUN --env worldmtp/SpellBackward-v0. Pages in docs/ of the repository: "
        "python.md, and duality.md of searches.",
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="PATH", help="a run, a saved MTPModel or a causal LM on disk")
    add("--env", required=True, metavar="ID", help="a gymnasium id, or <module>:<id>")
    add(
        "--num-prompts",
        type=positive,
        metavar="N",
        help=f"held-out prompts; by default {_NUM_PROMPTS}, and 1 where trees are shown",
    )
    add("--temperature", type=float, default=1.0, metavar="T", help="of sampled answers, beside greedy ones; 1")
    add("--seed", type=whole_seed, default=0, metavar="N", help="of prompts and draws; by default 0, as a run's")
    add("--device", help="cpu, cuda, ...; by default cuda where there is one")
    add("--json", action="store_true", help="one JSON object; one a line for each way to answer")
    add("--search", choices=("gumbel", "puct"), help="act by search as well, token by token")
    add("--simulations", type=positive, nargs="+", metavar="N", help="of each search; by default 32")
    add(
        "--dynamics",
        nargs="+",
        choices=("mtp", "oracle", "replies", "world"),
        help="search over heads (mtp, the default) or the trunk, or on through replies: foreseen ones, or the world's",
    )
    add("--depth", type=positive, metavar="N", help="tokens a search looks ahead; by default all that the heads have")
    add("--width", type=positive, metavar="N", help="likeliest tokens of a node that a search knows; by default 16")
    add("--scale", choices=SCALES, help="measure values by the node's own range, or that of all returns")
    add("--gamma", type=float, metavar="G", help="discount of a search; by default the run's agent.ppo.gamma, or 1")
    add("--verify", type=positive, metavar="K", help="let the trunk verify the K best tokens of a search over heads")
    add("--explain", action="store_true", help="show the trees of one search instead, move by move, with the replies")
    add("--tree-html", type=Path, metavar="FILE", help="write them as one page, opened offline")
    add("--best-of", type=positive, nargs="+", default=[], metavar="N", help="the best of N draws as well")
    add("--beam", type=positive, nargs="+", default=[], metavar="N", help="a beam search that keeps N texts as well")
    add_kwargs(parser)
    add_imports(parser)
    return parser
