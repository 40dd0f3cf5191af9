"""``worldmtp``: one command for everything that is done from a terminal.

    worldmtp train experiment=quickstart      train, or run a study; see worldmtp train --help
    worldmtp eval --model RUN --env ID        evaluate a checkpoint on an environment, without training
    worldmtp analyze RUN                      write the report of a run again
    worldmtp generate "hello="                write on from prompts
    worldmtp envs list | check | play         what there is to train on

The work of each is in the module of its name, which is imported when it is asked for.
"""

import sys
from importlib import import_module

from worldmtp.choices import nearest

_COMMANDS = {
    "train": "warm start, PPO with imagination, evaluation, analysis; or a study; resume=RUN goes on with a run",
    "eval": "evaluate a checkpoint on an environment, without training",
    "analyze": "write the report of a run again, or compare two runs or two sweeps",
    "generate": "write on from prompts, with drafts that the trunk verifies",
    "envs": "list, check and play environments",
}
_MODULES = {"eval": "evaluate"}


def main() -> None:
    """Run the command that the first argument names with the arguments behind it."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(_help())
        return
    if command == "--version":
        from importlib.metadata import version

        print(version("worldmtp"))
        return
    if command not in _COMMANDS:
        near = nearest(command, _COMMANDS)
        hint = f" Did you mean {near!r}?" if near else ""
        print(f"error: there is no command {command!r}.{hint} Choose from {', '.join(_COMMANDS)}.", file=sys.stderr)
        sys.exit(2)
    sys.argv[:2] = [f"worldmtp {command}"]
    import_module(f"worldmtp.cli.{_MODULES.get(command, command)}").main()


def _help() -> str:
    width = max(map(len, _COMMANDS))
    commands = [f"  {name.ljust(width)}  {what}" for name, what in _COMMANDS.items()]
    return "\n".join(
        ["usage: worldmtp COMMAND ...", "", *commands, "", "worldmtp COMMAND --help tells more; --version the version."]
    )


if __name__ == "__main__":
    main()
