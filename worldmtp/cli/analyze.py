"""``worldmtp analyze <run dir>``: write the report of a run from what it saved; no model, no environment."""

import argparse
from pathlib import Path

from worldmtp.analysis import write_report
from worldmtp.analysis.run_files import RUN_FILES
from worldmtp.cli.launch import fail_cleanly
from worldmtp.cli.sweep import jobs_of, sweep_table


def main() -> None:
    """Console script."""
    parser = argparse.ArgumentParser(prog="worldmtp analyze", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="directory of a run of worldmtp train")
    arguments = parser.parse_args()
    fail_cleanly(lambda: print(_report_of(arguments.run_dir)))


def _report_of(run_dir: Path) -> Path:
    """The report's path.

    Raises:
        ValueError: the directory holds nothing of a run; the message names the jobs of a sweep that it holds.
        FileNotFoundError: there is no such directory.
    """
    if run_dir.is_dir() and not any((run_dir / name).exists() for name in RUN_FILES):
        jobs = jobs_of(run_dir)
        if jobs:
            table = sweep_table(run_dir)
            raise ValueError(
                f"{run_dir} is the directory of a sweep, not of a run; analyze one of its jobs:\n\n{table}"
            )
        raise ValueError(
            f"{run_dir} holds no run: it has none of {', '.join(RUN_FILES)}. Pass the directory that worldmtp train "
            "printed."
        )
    return write_report(run_dir)
