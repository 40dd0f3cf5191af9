"""One run directory has one writer: the second is told who the first is, and a dead one keeps nobody out."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from worldmtp.cli.resume import resumed_config
from worldmtp.cli.train import run
from worldmtp.training.run_dir import RunResult, claim

ROOT = Path(__file__).parents[2]
CONFIG = {"seed": 0}

RACE = """
import json, multiprocessing, sys
from pathlib import Path
from worldmtp.training.run_dir import claim

def contend(directory, seed, barrier, told):
    held, won = [], []
    config = {"seed": seed, "pad": list(range(300))}
    for i in range(200):
        barrier.wait()
        try:
            held.append(claim(Path(directory) / str(i), config, resumes=False))
            won.append(True)
        except ValueError:
            won.append(False)
    told.put(won)
    barrier.wait()  # a winner holds what it has until both are through

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    barrier, told = context.Barrier(2), context.Queue()
    seeds = [0, int(sys.argv[2])]
    rivals = [context.Process(target=contend, args=(sys.argv[1], seed, barrier, told)) for seed in seeds]
    for rival in rivals:
        rival.start()
    found = [told.get() for _ in rivals]
    for rival in rivals:
        rival.join()
    print(json.dumps([sum(pair) for pair in zip(*found, strict=True)]))
"""


def script(text: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", text, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("seed", [0, 1], ids=["of one run", "of two runs"])
def test_of_two_simultaneous_claims_one_wins(tmp_path, seed):
    process = script(RACE, str(tmp_path), str(seed))
    winners, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(winners) == [1] * 200


def test_the_second_writer_is_told_who_the_first_is(tmp_path):
    first = claim(tmp_path / "run", CONFIG, resumes=False)
    message = f"run is being written by process {os.getpid()} on {socket.gethostname()}; wait until that ends or stop"
    for resumes in (False, True):
        with pytest.raises(ValueError, match=message):
            claim(tmp_path / "run", {"seed": 1}, resumes=resumes)
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").seed == 0
    first.release()
    with claim(tmp_path / "run", CONFIG, resumes=False):
        pass


def test_an_owner_that_is_not_named_yet_keeps_others_out(tmp_path):
    with claim(tmp_path, CONFIG, resumes=False):
        (tmp_path / ".lock").write_text("")
        with pytest.raises(ValueError, match="is being written by another process; wait"):
            claim(tmp_path, CONFIG, resumes=False)


def test_a_refused_config_leaves_no_lock(tmp_path):
    claim(tmp_path, CONFIG, resumes=False).release()
    with pytest.raises(ValueError, match="already holds a run with another config"):
        claim(tmp_path, {"seed": 1}, resumes=False)
    claim(tmp_path, CONFIG, resumes=False).release()


def test_a_killed_owner_keeps_nobody_out_though_its_child_lives(tmp_path):
    text = (
        "import os, sys, time\nfrom pathlib import Path\n"
        "from worldmtp.training.run_dir import claim\n"
        "held = claim(Path(sys.argv[1]), {'seed': 0}, False)\n"
        "if os.fork() == 0:\n    print(os.getpid(), flush=True)\n"  # it has let go by then
        "time.sleep(60)\n"
    )
    owner = script(text, str(tmp_path))
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    try:
        with pytest.raises(ValueError, match=f"is being written by process {owner.pid} on "):
            claim(tmp_path, CONFIG, resumes=False)
        owner.send_signal(signal.SIGKILL)
        owner.wait(timeout=60)
        os.kill(child, 0)  # it lives
        claim(tmp_path, CONFIG, resumes=False).release()
    finally:
        os.kill(child, signal.SIGKILL)
        owner.stdout.close()


def test_a_run_and_its_resumption_hold_the_directory(compose_tiny, tmp_path, no_report, monkeypatch):
    tried = []

    def rival(*args):
        for attempt in (compose_tiny(), compose_tiny("seed=1")):
            with pytest.raises(ValueError, match=f"is being written by process {os.getpid()}"):
                run(attempt, tmp_path)
        with pytest.raises(ValueError, match=f"is being written by process {os.getpid()}"):
            run(resumed_config(tmp_path, []), tmp_path, resumes=True)
        tried.append(args)
        return RunResult(tmp_path, 0.5, "the closing table")

    monkeypatch.setattr("worldmtp.training.pipeline.execute", rival)
    assert run(compose_tiny(), tmp_path) == 0.5
    assert run(resumed_config(tmp_path, []), tmp_path, resumes=True) == 0.5
    assert len(tried) == 2


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def none(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("worldmtp.training.run_dir.fcntl.flock", none)
    with pytest.warns(UserWarning, match=r"file system without locks .*see to it that no second run writes there"):
        claim(tmp_path, CONFIG, resumes=False).release()


def test_a_lock_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"run cannot be written \(.*\.lock.*choose another\."):
        claim(tmp_path / "run", CONFIG, resumes=False)
