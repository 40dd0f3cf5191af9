"""Seconds of an iteration of the quickstart's reinforcement, in this tree and in an earlier commit, in turn.

    python benchmarks/quickstart_speed.py --before df3f3ce --repeats 3

Each repeat trains both trees with one seed for a few iterations, after a short warm start and without evaluations, one
process at a time. The figure of a run is the median of its iterations' ``time/total_seconds``, the first two left out;
that of a repeat is the ratio of both, and the table shows each with the median ratio. Dependencies are those installed.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
_LEFT_OUT = 2
_OVERRIDES = (
    "experiment=quickstart",
    "sft.num_steps=20",
    "eval.every_iterations=1000",
    "eval.num_prompts=64",
    "checkpoint.every_iterations=1000",
    "logger.tensorboard=false",
)


def unpack(commit: str, directory: Path) -> Path:
    """Write the tree of a commit into a directory."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(directory, filter="data")
    return directory


def seconds_of(tree: Path, num_iterations: int, seed: int, run_dir: Path) -> float:
    """Return the median seconds of the iterations that one run of a tree makes.

    Raises:
        RuntimeError: the run failed; the message ends with what it wrote.
    """
    has_one_command = (tree / "worldmtp" / "cli" / "__main__.py").exists()
    program = ["-m", "worldmtp.cli", "train"] if has_one_command else ["-c", _OLD_COMMAND]
    overrides = [*_OVERRIDES, f"agent.rollout.num_iterations={num_iterations}", f"seed={seed}"]
    done = subprocess.run(
        [sys.executable, *program, *overrides, f"hydra.run.dir={run_dir}"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the quickstart of {tree} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return median([record["time/total_seconds"] for record in records if "time/total_seconds" in record][_LEFT_OUT:])


_OLD_COMMAND = "from worldmtp.cli.train import main; main()"
"""Of trees in which each script had a module of its own."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both trees in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="df3f3ce", help="the earlier commit (df3f3ce: the first stage's last)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=14)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        trees = {"before": unpack(options.before, Path(folder, "before")), "now": unpack("HEAD", Path(folder, "now"))}
        print("repeat  before s  now s  ratio")
        ratios = []
        for repeat in range(options.repeats):
            order = ["before", "now"] if repeat % 2 == 0 else ["now", "before"]
            found = {
                name: seconds_of(trees[name], options.iterations, repeat + 1, Path(folder, f"{name}-{repeat}"))
                for name in order
            }
            ratios.append(found["before"] / found["now"])
            print(f"{repeat + 1:6}  {found['before']:8.3f}  {found['now']:5.3f}  {ratios[-1]:.2f}", flush=True)
        print(f"median ratio {median(ratios):.2f} of {options.repeats} repeats, {options.iterations} iterations each")


if __name__ == "__main__":
    main()
