"""Scoring processes: what scorers do to them harms nobody else, and nothing of them is left behind.

Waits are generous, since the machine may be busy; none of them is what a test asserts.
"""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from worldmtp.envs import Example, Scorer, TextGenVectorEnv

NO_IDS = np.zeros(0, dtype=np.int64)
PATIENCE = 120.0

WILD = """
import os
import subprocess
import sys
import time
from pathlib import Path

from worldmtp.envs import Example, Score


class Odd(Score):
    def __reduce__(self):
        return sys.exit, (0,)


class SealedError(Exception):
    def __init__(self, first, second):
        super().__init__(first)


def sleeper(folder):
    child = subprocess.Popen(["sleep", "600"])
    (folder / "children").open("a").write(f"{child.pid}\\n")


class Wild:
    def sample(self, rng, split):
        return Example("a=", "a")

    def score(self, example, text, ids):
        folder = Path(example.meta["folder"])
        if text in ("hang", "raise", "quit", "die", "leave"):
            sleeper(folder)
        if text == "hang":
            9 ** (32 ** 7)  # in C, where neither signals nor threads of Python are heard
        if text == "raise":
            raise ZeroDivisionError("by the task")
        if text == "quit":
            sys.exit(0)
        if text == "die":
            if os.fork() == 0:
                time.sleep(600)
            os._exit(7)
        if text == "fork":
            os.fork()  # and both return
        if text == "allocate":
            held = []
            while True:
                held.append(bytearray(2**26))
        if text == "odd":
            return Odd(1.0)
        if text == "sealed":
            raise SealedError(1, 2)
        if text.startswith("together"):
            (folder / text).touch()
            limit = time.monotonic() + 100
            while len(list(folder.glob("together*"))) < 4:
                if time.monotonic() > limit:
                    raise RuntimeError("the others were not scored at the same time")
                time.sleep(0.01)
        return Score(ids.sum() / 100, {"pid": float(os.getpid())})
"""

TRAINER = """
import sys
import numpy as np
from wild_task import Wild
from worldmtp.envs import Example, Scorer

if __name__ == "__main__":
    scorer = Scorer(Wild(), timeout_seconds=300.0, num_scorers=2)
    example = Example("a=", "a", {"folder": sys.argv[1]})
    scorer.score_batch([(example, text, np.zeros(0, dtype=np.int64)) for text in ("leave", "leave")])
    print(*scorer._pool.pids, flush=True)
    if sys.argv[2] == "hang":
        scorer.score(example, "hang", np.zeros(0, dtype=np.int64))
"""


@pytest.fixture
def wild(tmp_path, monkeypatch):
    """A task in a module of its own, which a spawned process can import."""
    (tmp_path / "wild_task.py").write_text(WILD)
    monkeypatch.syspath_prepend(tmp_path)
    import wild_task

    return wild_task.Wild()


@pytest.fixture
def ask(tmp_path):
    example = Example("a=", "a", {"folder": str(tmp_path)})
    return lambda *texts: [(example, text, np.array([number])) for number, text in enumerate(texts)]


def is_alive(pid):
    """Not gone, and not merely waiting to be collected by the init process, which inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def assert_gone(pids):
    limit = time.monotonic() + PATIENCE
    while any(map(is_alive, pids)) and time.monotonic() < limit:
        time.sleep(0.02)
    assert [pid for pid in pids if is_alive(pid)] == []


def children_of(tmp_path):
    return [int(line) for line in (tmp_path / "children").read_text().split()]


@pytest.mark.parametrize(
    ("text", "shown", "counted"),
    [
        ("hang", "no score after 3 s; the scoring process was killed", (0, 1)),
        ("raise", "ZeroDivisionError: by the task", (1, 0)),
        ("quit", "SystemExit: 0", (1, 0)),
        ("die", "the scoring process died without an answer, exit code 7", (1, 0)),
    ],
)
def test_a_scorer_that_fails_is_killed_with_its_children(wild, ask, tmp_path, text, shown, counted):
    scorer = Scorer(wild, timeout_seconds=3.0 if text == "hang" else PATIENCE, num_scorers=2)
    with pytest.warns(RuntimeWarning, match=shown):
        scores = scorer.score_batch(ask("a", text, "a", "a"))
    assert [score.value for score in scores] == [0.0, 0.0, 0.02, 0.03]
    assert (scorer.counters.scored, scorer.counters.errors, scorer.counters.timeouts) == (4, *counted)
    (child,) = children_of(tmp_path)
    assert_gone([child])
    assert [score.value for score in scorer.score_batch(ask("a", "a"))] == [0.0, 0.01]
    scorer.close()


def test_a_fork_of_the_scorer_answers_nobody(wild, ask):
    scorer = Scorer(wild, timeout_seconds=30.0, num_scorers=1)
    values = [score.value for score in scorer.score_batch(ask("fork", "a", "fork", "a"))]
    assert values == [0.0, 0.01, 0.02, 0.03]
    assert scorer.counters.errors == 0
    scorer.close()


def test_memory_is_bounded_and_counted_as_an_error(wild, ask):
    scorer = Scorer(wild, timeout_seconds=60.0, num_scorers=1, scorer_memory_gib=0.25)
    with pytest.warns(RuntimeWarning, match="later failures of this kind, 'memory'(.|\n)*MemoryError"):
        scores = scorer.score_batch(ask("a", "allocate", "a"))
    assert [(score.value, score.reason) for score in scores] == [(0.0, "ok"), (0.0, "error"), (0.02, "ok")]
    assert scores[0].components["pid"] != scores[2].components["pid"]
    assert scorer.counters.errors == 1
    scorer.close()


def test_what_cannot_be_made_anew_is_an_error_that_is_told(wild, ask):
    """An exception that does not unpickle is told by its traceback; a result that does not is no result."""
    scorer = Scorer(wild, timeout_seconds=30.0, num_scorers=1)
    with pytest.warns(RuntimeWarning, match=r"SealedError: 1"):
        scores = scorer.score_batch(ask("sealed", "a", "odd", "a"))
    assert [(score.value, score.reason) for score in scores] == [
        (0.0, "error"), (0.01, "ok"), (0.0, "error"), (0.03, "ok"),
    ]  # fmt: skip
    assert scorer.counters.errors == 2
    with pytest.raises(RuntimeError, match="the scorer's result does not unpickle"):
        Scorer(wild, timeout_seconds=30.0, on_error="raise", num_scorers=1).score_batch(ask("odd"))
    scorer.close()


def test_each_kind_of_failure_is_shown_once(wild, ask):
    scorer = Scorer(wild, timeout_seconds=30.0, num_scorers=1)
    with pytest.warns(RuntimeWarning) as shown:
        scorer.score_batch(ask("quit", "sealed", "quit", "die", "raise", "die"))
    kinds = [str(warning.message).partition("this kind, ")[2].partition(",")[0] for warning in shown]
    assert kinds == ["'exit'", "'error'", "'died'"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer.score_batch(ask("raise", "quit"))
    assert scorer.counters.errors == 8
    scorer.close()


def test_four_score_at_the_same_time_and_in_order(wild, ask):
    """None of the four returns before all have begun."""
    scorer = Scorer(wild, timeout_seconds=PATIENCE, num_scorers=4)
    scores = scorer.score_batch(ask(*(f"together{number}" for number in range(4))))
    assert [score.value for score in scores] == [0.0, 0.01, 0.02, 0.03]
    assert len({score.components["pid"] for score in scores}) == 4
    values = [score.value for score in scorer.score_batch(ask(*"abcdefghijkl"))]
    assert values == [number / 100 for number in range(12)]
    assert len(scorer._pool.pids) == 4
    scorer.close()


@pytest.mark.parametrize("how", ["close", "collect"])
def test_nothing_is_left_when_a_scorer_is_closed_or_collected(wild, ask, tmp_path, how):
    scorer = Scorer(wild, timeout_seconds=30.0, num_scorers=2)
    scorer.score_batch(ask("leave", "leave"))
    pids = scorer._pool.pids
    assert len(pids) == 2
    if how == "close":
        scorer.close()
    del scorer
    gc.collect()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)  # not even a zombie
    assert_gone(children_of(tmp_path))


@pytest.mark.parametrize("how", ["exit", "hang"])
def test_nothing_is_left_when_the_trainer_exits_or_is_killed(wild, tmp_path, how):
    """At its exit, or when it is killed while a scorer computes in C and hears nothing."""
    (tmp_path / "trainer.py").write_text(TRAINER)
    command = [sys.executable, str(tmp_path / "trainer.py"), str(tmp_path), how]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as trainer:
        pids = [int(pid) for pid in trainer.stdout.readline().split()]
        assert len(pids) == 2
        if how == "exit":
            assert trainer.wait(PATIENCE) == 0
        else:
            assert_written(tmp_path, 3)
            assert all(map(is_alive, pids))
            trainer.send_signal(signal.SIGKILL)
    assert_gone([*pids, *children_of(tmp_path)])


def assert_written(tmp_path, num_children):
    limit = time.monotonic() + PATIENCE
    while len(children_of(tmp_path)) < num_children:
        assert time.monotonic() < limit, "the scorer was not asked"
        time.sleep(0.02)


def test_a_process_that_died_between_two_calls_is_replaced_and_nothing_is_counted(wild, ask):
    scorer = Scorer(wild, timeout_seconds=30.0, num_scorers=1)
    scorer.score_batch(ask("a"))
    (pid,) = scorer._pool.pids
    os.kill(pid, signal.SIGKILL)
    assert_gone([pid])
    assert [score.value for score in scorer.score_batch(ask("a", "a"))] == [0.0, 0.01]
    assert scorer.counters.errors == 0
    scorer.close()


def test_an_environment_has_one_scorer_that_counts_and_is_closed(wild):
    """Four answers, of three rows; each of them fails, since the task's examples name no folder."""
    kwargs = {"task": wild, "tokenizer": "char:ab=", "max_prompt": 2, "max_new": 2, "pool_size": 1}
    kwargs |= {"heldout_fraction": 0.0, "timeout_seconds": 30.0, "num_scorers": 2}
    envs = TextGenVectorEnv(3, **kwargs)
    envs.reset(seed=0)
    with pytest.warns(RuntimeWarning, match="KeyError: 'folder'"):
        envs.step(np.array([1, 1, 1]))
    envs.reset(options={"reset_mask": np.array([True, False, False])})
    envs.step(np.array([1, 0, 0]))
    assert (envs.scorer.counters.scored, envs.scorer.counters.errors) == (4, 4)
    pids = envs.scorer._pool.pids
    assert pids
    assert all(map(is_alive, pids))
    envs.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_script_without_a_main_guard_runs_once_and_is_told_of_it(wild, tmp_path):
    """Each scoring process imports the script, which would run again in each, and in those that these start."""
    begun, _, body = TRAINER.partition('if __name__ == "__main__":\n')
    script = tmp_path / "trainer.py"
    script.write_text(begun + 'print("begun", flush=True)\n' + textwrap.dedent(body))
    words = [sys.executable, str(script), str(tmp_path), "end"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    # The process of each of the two answers gets as far as to make its scorer, and makes no process of its own.
    assert done.stdout.splitlines().count("begun") == 3
    assert "RuntimeError: a scoring process imports the script that started it; put what the script does" in done.stderr
    assert "died without an answer, exit code 1. If a script has started it: put what the script does under if" in (
        done.stderr
    )
