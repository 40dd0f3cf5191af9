"""``kill -9`` of the console script, again and again, ends with what the run finds that was never killed."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = (sys.executable, "-m", "worldmtp.cli", "train")
RUN = (
    "sft.num_steps=60",
    "sft.log_steps=2",
    "sft.save_steps=4",
    "sft.eval_steps=8",
    "agent.rollout.num_iterations=6",
    "eval.every_iterations=2",
)


def start(directory: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*SCRIPT, *arguments], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: "subprocess.Popen[str]") -> None:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output


def kill_when(process: "subprocess.Popen[str]", reached: Callable[[], bool]) -> None:
    """SIGKILL as soon as ``reached``; a process that ends by itself before that fails the test."""
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_at_every_stage(tiny_overrides, results_of, tmp_path):
    arguments = [*tiny_overrides, *RUN]
    finish(start(tmp_path, "hydra.run.dir=whole", *arguments))

    run_dir = tmp_path / "killed"
    trainer, sft, log = run_dir / "sft" / "trainer", run_dir / "sft" / "metrics.jsonl", run_dir / "metrics.jsonl"
    moments = [
        # In the warm start: while its first checkpoint is being written, and later on.
        lambda: trainer.is_dir() and any(trainer.glob("checkpoint-*")),
        lambda: num_lines(sft) >= 15,
        # In reinforcement: after the first iteration (three lines stand before it), and while a checkpoint is written.
        lambda: num_lines(log) >= 4,
        lambda: num_lines(log) >= 6 and any((run_dir / "checkpoints").glob(".*.partial")),
        # After the last iteration.
        lambda: (run_dir / "summary.json").exists(),
    ]
    kill_when(start(tmp_path, "hydra.run.dir=killed", *arguments), moments[0])
    for moment in moments[1:]:
        kill_when(start(tmp_path, "resume=killed"), moment)
        assert not (run_dir / "DONE").exists()
    finish(start(tmp_path, "resume=killed"))
    assert (run_dir / "DONE").exists()
    assert (run_dir / "report.html").stat().st_size > 0
    assert results_of(run_dir) == results_of(tmp_path / "whole")
