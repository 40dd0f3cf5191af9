"""Hostile answers to reasoning-gym: nothing hangs, grows or is paid, in a process that is killed where one does."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmtp.envs import make_task
from worldmtp.envs.tasks.evaluated_answers import EXPRESSION, LITERAL

NO_IDS = np.zeros(0, dtype=np.int64)
COUNTING = {
    "coin_flip": [
        "1e999999999",
        "-1E+999999999",
        "1e9_9_9_9_9_9_9_9_9",
        "1e-99999999/3",
        "1e\u0669999999999",
        "1e9,9,9,9,9,9,9,9,9",  # commas are left out before it is read
    ],
    "rubiks_cube": [
        "0123456789",
        "R999999999",
        "R U999999999",
        "R\u0669\u0669\u0669\u0669\u0669\u0669\u0669\u0669\u0669",
    ],
    "rush_hour": ["A+999999999", "A+1 B-999999999"],
}
"""Datasets whose scorers do as much work as a number in the answer says."""
HANGS = [
    "9**9**9**9",
    "9**(32*32*32*32*32*32*32)",
    "((9**99)**99)**99",
    "*".join(["9**99"] * 13),
    "exp(exp(exp(5)))",
    "exp(exp(exp(exp(E))))",
    "exp(exp(exp(exp(32))))",
    "sin(exp(10**9))",
    "(9**100*x)**100",
    "x**x**x**x",
    "entry['metadata']['solutions'][0]",
    "9" * 5000,
    "1e999999999",
    "1e000000000999999999",
    "x*1E+0000000000000000000999999999",
    "(" * 2000 + "1" + ")" * 2000,
    "[" * 2000 + "]" * 2000,
    "-" * 3000 + "1",
    "+".join(["x"] * 3000),
]
MEMORY = 4 * 2**30
ATOMS = st.sampled_from(
    [
        *(
            "1",
            "9",
            "24",
            "0",
            "x",
            "X",
            "y",
            "C",
            "E",
            "pi",
            "1e9",
            ".5",
            "9" * 40,
            "1_000",
            "\u0663",
            "\uff19",
            "0x9",
        ),
        *("'a'", "f'{entry}'", "self", "lambda", "True", "None", "1j", "nan", "NaN", "inf", "zoo", "__import__"),
        *("entry", "oracle_answer", "open", "\u0435xp", "()", "[]", "1if 1else 2", "\n"),
    ]
)
HOSTILE = st.recursive(
    ATOMS,
    lambda part: st.one_of(
        st.tuples(part, st.sampled_from(["**", "*", "/", "+", "-", "//", "%", "<<", ",", " "]), part).map("".join),
        st.tuples(st.sampled_from(["exp", "sin", "log", "factorial", "eval", "S", "range", "gamma"]), part).map(
            lambda called: f"{called[0]}({called[1]})"
        ),
        part.map(lambda text: f"({text})"),
        part.map(lambda text: f"[{text}]"),
        part.map(lambda text: f"{text}['metadata']"),
        part.map(lambda text: f"{text}.__class__"),
        part.map(lambda text: f"[{text} for x in {text}]"),
        part.map(lambda text: f"{text}**(9**9**9)"),
        part.map(lambda text: f"-{text}"),
        part.map(lambda text: f"sin({text}, evaluate={text})"),
        part.map(lambda text: f"(lambda x: {text})({text})"),
        part.map(lambda text: "(" * 500 + text + ")" * 500),
        part.map(lambda text: "+".join([text] * 300)),
    ),
    max_leaves=12,
)


def say(name, text):
    """Write what is scored next, so that a culprit is seen if the process is killed."""
    sys.stdout.write(json.dumps([name, text[:80]]) + "\n")
    sys.stdout.flush()


def score_hangs(name):
    """Score each text of HANGS for two questions."""
    task = make_task(name, {"calibration_items": 4, "compact": False})
    for seed in range(2):
        example = task.sample(np.random.default_rng(seed), "train")
        for text in COUNTING.get(name, HANGS):
            say(name, text)
            score = task.score(example, text, NO_IDS)
            assert (score.value, score.exact) == (0.0, False), text[:80]


def score_grammar(name, count, milliseconds):
    """Score texts of HOSTILE, and none may earn anything or, at its best of three, take that long."""
    task = make_task(name, {"calibration_items": 4, "compact": False})
    example = task.sample(np.random.default_rng(0), "train")
    task.score(example, example.answer, NO_IDS)  # imports of the library

    @settings(derandomize=True, max_examples=int(count), deadline=None, database=None)
    @given(HOSTILE)
    def check(text):
        say(name, text)
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            score = task.score(example, text, NO_IDS)
            best = min(best, time.perf_counter() - start)
            if best < 1e-3 * float(milliseconds):
                break
        assert score.value == 0.0, text
        assert best < 1e-3 * float(milliseconds), text

    check()


def run_apart(project_root, seconds, function, names, *arguments):
    """Call a function of this file for each of the names in a process with limits of time and memory."""
    code = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2);"
        "of = runpy.run_path(sys.argv[2])[sys.argv[3]];"
        "[of(name, *sys.argv[5:]) for name in sys.argv[4].split()]"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(MEMORY), __file__, function, " ".join(names)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(project_root), *sys.path])}
    try:
        done = subprocess.run(
            [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        written = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or "nothing"
        pytest.fail(f"killed after {seconds} s while scoring {written.splitlines()[-1:]}")
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1:]}: {done.stderr[-2000:]}"
    return done.stdout.splitlines()


def test_no_text_hangs_a_scorer(project_root: Path):
    names = sorted(EXPRESSION | LITERAL | set(COUNTING) | {"complex_arithmetic"})
    lines = run_apart(project_root, 240, "score_hangs", names)
    assert len({json.loads(line)[0] for line in lines}) == len(names)


def test_a_grammar_of_hostile_texts_earns_nothing(project_root: Path):
    run_apart(project_root, 240, "score_grammar", sorted(EXPRESSION | LITERAL | {"complex_arithmetic"}), 25, 10_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXPRESSION | LITERAL | {"complex_arithmetic"}))
def test_a_thousand_hostile_texts_take_50_ms_at_most(name, project_root: Path):
    run_apart(project_root, 400, "score_grammar", [name], 1000, 50)


def test_the_guard_kills_what_hangs(project_root: Path):
    with pytest.raises(pytest.fail.Exception, match="killed after 2 s while scoring"):
        run_apart(project_root, 2, "wait", ["for ever"])


def wait(name):
    """Hang as a scorer might."""
    say(name, "nothing")
    time.sleep(600)
