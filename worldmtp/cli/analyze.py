"""``worldmtp analyze <run dir>``: write the report of a run from what it saved; no model, no environment."""

import argparse
from pathlib import Path

from worldmtp.analysis import write_report
from worldmtp.cli.launch import fail_cleanly


def main() -> None:
    """Console script."""
    parser = argparse.ArgumentParser(prog="worldmtp analyze", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="directory of a run of worldmtp train")
    arguments = parser.parse_args()
    fail_cleanly(lambda: print(write_report(arguments.run_dir)))
