"""``worldmtp envs list | check | play``: what environments there are, whether one is sound, and how it feels.

    worldmtp envs list                                          the catalogue, with lengths measured
    worldmtp envs check worldmtp/Reverse-v0                     contract, splits, hack probes, baselines
    worldmtp envs play worldmtp/Reverse-v0                      answer at the keyboard
    worldmtp envs play worldmtp/Pig-v0 --model RUN              watch a trained policy
    worldmtp envs check worldmtp/MyTask-v0 --import ./my_envs.py
    worldmtp envs check worldmtp/ReasoningGym-v0 --kwargs task=gcd task_kwargs.max_value=50

Here are the arguments; the work is in ``envs_catalogue.py`` and ``envs_play.py``.
"""

import argparse
from pathlib import Path

from worldmtp.cli.arguments import (
    add_imports,
    add_kwargs,
    import_run_modules,
    load_model,
    model_directory,
    parse_kwargs,
    positive,
    run_config,
    whole_seed,
)
from worldmtp.cli.errors import fail_cleanly
from worldmtp.training.config import EnvConfig
from worldmtp.training.imports import import_user_modules

_ID = "a gymnasium id, or <module>:<id>, whose module is imported first; the current directory is searched"


def main() -> None:
    """Run the command."""
    arguments = _parser().parse_args()
    fail_cleanly(lambda: _run(arguments), also=(AssertionError,))  # a failed check says what was seen


def _run(arguments: argparse.Namespace) -> None:
    known = _registered()
    import_user_modules(arguments.imports, option="--import ")
    if arguments.command == "list":
        from worldmtp.cli.envs_catalogue import list_envs

        list_envs(arguments.pattern, sorted(_registered() - known), as_json=arguments.json)
        return
    env = EnvConfig(arguments.id, parse_kwargs(arguments.kwargs))
    if arguments.command == "check":
        from worldmtp.cli.envs_catalogue import check_env

        check_env(env.id, env.kwargs, arguments.episodes, arguments.seed, arguments.examples)
    else:
        from worldmtp.cli.envs_play import play_env

        player = None
        if arguments.model is not None:
            from worldmtp.cli.evaluate import environment_of

            directory = model_directory(arguments.model, "--model")
            trained = run_config(arguments.model)
            import_run_modules(trained)
            env = environment_of(trained, directory, env.id, env.kwargs)
            player = load_model(directory, "cpu")
        play_env(env, arguments.split, arguments.episodes, arguments.seed, player)


def _registered() -> set[str]:
    import gymnasium

    import worldmtp.envs  # noqa: F401 - registers

    return set(gymnasium.registry)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="worldmtp envs",
        description="Text environments: list what there is, check one, play one.",
        epilog="example: worldmtp envs check worldmtp/Reverse-v0. Pages in docs/ of the repository: environments.md, "
        "own_environments.md.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="list | check | play")
    listing = commands.add_parser(
        "list", help="the catalogue", description="The catalogue, lengths measured in tokens."
    )
    listing.add_argument("pattern", nargs="?", default="", help="part of an id, or a pattern with * and ?")
    listing.add_argument("--json", action="store_true", help="one JSON object, ids to descriptions")
    check = commands.add_parser(
        "check",
        help="is it sound, and what do baselines earn",
        description=(
            "Contract of the single and of the vector environment, splits, hack probes, and what players earn who know "
            "nothing. Code 1 and what was seen where it is unsound."
        ),
    )
    check.add_argument("--episodes", type=positive, default=200, metavar="N", help="of each baseline; by default 200")
    check.add_argument(
        "--examples", type=positive, metavar="N", help="questions of each split for the probes; by default up to 64"
    )
    play = commands.add_parser(
        "play",
        help="answer at the keyboard",
        description=r"Answer at the keyboard, a line an answer or turn; \n in it is a new line. Ctrl-D ends.",
    )
    play.add_argument("--episodes", type=positive, default=1, metavar="N", help="by default 1")
    play.add_argument(
        "--model", type=Path, metavar="PATH", help="a run, or any checkpoint, that plays in your place, greedily"
    )
    play.add_argument("--split", default="train", choices=("train", "heldout"))
    for command in (check, play):
        command.add_argument("id", help=_ID)
        add_kwargs(command)
        command.add_argument("--seed", type=whole_seed, default=0, metavar="N", help="by default 0")
    for command in (listing, check, play):
        add_imports(command)
    return parser
