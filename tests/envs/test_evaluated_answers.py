"""Nothing that a policy writes is run as code by reasoning-gym's scorers; right answers earn what the library pays."""

import inspect
import re
import sys

import numpy as np
import pytest
from reasoning_gym import create_dataset
from reasoning_gym.factory import DATASETS

from worldmtp.envs import make_task
from worldmtp.envs.tasks.evaluated_answers import EXPRESSION, LITERAL, verdict

NO_IDS = np.zeros(0, dtype=np.int64)
EVALUATING = sorted(EXPRESSION | LITERAL)
NUMBERS = {"metadata": {"numbers": [1, 3, 5, 9], "target": 24}}


def integral(integrand, variable="x"):
    return {"metadata": {"integrand": integrand, "variable": variable}}


@pytest.fixture(scope="module")
def asked():
    """A task and examples of each of the datasets."""
    made = {}

    def of(name, count=8):
        if name not in made:
            task = make_task(name, {"calibration_items": 2, "compact": False})
            made[name] = task, [task.sample(np.random.default_rng(seed), "train") for seed in range(count)]
        return made[name]

    return of


CODE = [
    "[9 for x in range(10)]",
    "().__class__",
    "entry['metadata']['solutions'][0]",
    "entry['metadata']['solution']",
    "entry['answer']",
    "oracle_answer",
    "[oracle_answer]",
    "list(oracle_answer)",
    "S(__import__('sys')._getframe(3).f_locals['entry']['answer'])",
    "sin(x, evaluate=open)",
    "f'{entry}'",
]


@pytest.mark.parametrize("name", EVALUATING)
def test_code_is_not_run(name, asked, tmp_path):
    task, examples = asked(name)
    mark = tmp_path / "ran"
    writes = [f"open({str(mark)!r}, 'w').write('x')", f"[open({str(mark)!r}, 'w').write('x')]"]
    for example in examples[:2]:
        for text in [*writes, *CODE]:
            score = task.score(example, text, NO_IDS)
            assert (score.value, score.exact) == (0.0, False), text[:80]
        assert task.score(example, example.answer, NO_IDS).exact
    assert not mark.exists()


WRONG_NUMBER = (0.0, "wrong_numbers")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(9-1)*(5-3)+9", WRONG_NUMBER),  # the 9 twice
        ("1*3*5 + 9", (1.0, "ok")),  # 15 + 9
        ("(1*3*5+9)", (1.0, "ok")),
        ("9+5*3/1", (1.0, "ok")),
        (" 9 + 3 * 5 * 1 ", (1.0, "ok")),
        ("1*3*5*9", (0.0, "wrong_value")),
        ("24", WRONG_NUMBER),
        ("1*2*3*4", WRONG_NUMBER),
        ("9/(5-3*1)/0", WRONG_NUMBER),
        ("1*3*5.0+9", (0.0, "no_arithmetic")),
        ("", (0.0, "no_arithmetic")),
    ],
)
def test_numbers_by_hand(text, expected):
    assert verdict("countdown", text, NUMBERS) == expected
    assert verdict("puzzle24", text, NUMBERS) == expected


def test_dividing_by_zero_is_no_answer():
    entry = {"metadata": {"numbers": [1, 1, 4, 6], "target": 24}}
    assert verdict("countdown", "4*6/(1-1)", entry) == (0.0, "no_arithmetic")
    assert verdict("countdown", "4*6*1**1", entry) == (1.0, "ok")


def test_puzzle24_is_not_cut_to_a_whole_number():
    """5*5 - 5/9 is 24.4, which the library's scorer cuts to 24."""
    assert verdict("puzzle24", "5*5-5/9", {"metadata": {"numbers": [5, 5, 5, 9]}}) == (0.0, "wrong_value")


@pytest.mark.parametrize(
    ("integrand", "variable", "text", "value"),
    [
        ("2*x", "x", "x**2", 1.0),
        ("2*x", "x", "x*x + C", 1.0),
        ("2*x", "x", "x**2 + c", 1.0),
        ("2*x", "x", "x**2 + K", 1.0),
        ("2*x", "x", "x**2 + k*x", 0.0),
        ("2*x", "x", "x**2 + 3*I", 0.0),  # the imaginary unit is no letter like others
        ("-3/x**4", "x", "x**(-3) + C", 1.0),
        ("2*x", "x", "C + (x + 1)*(x - 1)", 1.0),
        ("2*X", "X", "X**2 + C", 1.0),
        ("2*X", "X", "x**2 + C", 0.0),  # another variable
        ("2*x", "x", "x**2 + x/1000000", 0.0),
        ("2*x", "x", "x**2 + C*x", 0.0),
        ("cos(x)", "x", "sin(x) + C", 1.0),
        ("2*cos(x)*sin(x)", "x", "sin(x)**2", 1.0),
        ("2*cos(x)*sin(x)", "x", "-cos(x)**2 + C", 1.0),
        ("1/x", "x", "log(x)", 1.0),
        ("1/x", "x", "log(3*x)", 1.0),
        ("4*sqrt(4*x + 2)", "x", "2*(4*x + 2)**(3/2)/3 + C", 1.0),
        ("asin(3*x)", "x", "x*asin(3*x) + sqrt(1 - 9*x**2)/3 + C", 1.0),
        ("exp(-x)", "x", "-exp(-x)", 1.0),
        ("exp(-x)", "x", "exp(-x)", 0.0),
        ("1/(1 + x**2)", "x", "atan(x)", 1.0),
        ("2**x*log(2)", "x", "2**x", 1.0),
    ],
)
def test_integrals_by_hand(integrand, variable, text, value):
    decided = verdict("intermediate_integration", text, integral(integrand, variable))
    assert decided is not None
    assert decided[0] == value


def respelled(name, answer):
    """Three equivalent ways of writing an answer of a dataset."""
    if name in EXPRESSION:
        return [f"({answer})", answer.replace(" ", ""), f" {answer}\n"]
    if name == "n_queens":
        return [f" {answer}", f"{answer}\n", repr([row.split() for row in answer.split("\n")])]
    if name == "string_insertion":
        return [f" {answer} ", repr(list(answer)), repr(tuple(answer))]
    matrix = [[int(value) for value in row.split()] for row in answer.split("\n")]
    return [f" {answer}", f"{answer}\n", repr(matrix if name == "binary_matrix" else matrix[0])]


@pytest.mark.parametrize("count", [12, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", EVALUATING)
def test_right_answers_are_paid_as_the_library_pays_them(name, count):
    task = make_task(name, {"calibration_items": 2, "compact": False})
    dataset = create_dataset(name, seed=0, size=1)
    for seed in range(count):
        example = task.sample(np.random.default_rng(seed), "train")
        entry = example.meta["entry"]
        assert "Integral" not in example.answer  # an oracle that has not solved its question is no answer
        for text in [example.answer, *respelled(name, example.answer)]:
            expected = float(dataset.score_answer(text.strip(), entry))
            assert task.score(example, text, NO_IDS).value == expected, (example.answer, text)
            assert expected > 0


def test_complex_numbers():
    task = make_task("complex_arithmetic", {"calibration_items": 8, "compact": False})
    for seed in range(40):
        example = task.sample(np.random.default_rng(seed), "train")
        assert task.score(example, example.answer.replace(" ", ""), NO_IDS).value == 1.0
        for text in ("NaN", "nan+nanj", "inf", "-inf", "infinity", "nanj"):
            assert task.score(example, text, NO_IDS).value == 0.0
        assert task.score(example, "987654", NO_IDS).value == 0.0


def test_containment_is_for_scorers_that_look_for_the_oracle():
    added = make_task("chain_sum", {"calibration_items": 8})
    example = added.sample(np.random.default_rng(0), "train")
    assert added.score(example, f"{example.answer} {example.answer}", NO_IDS).reason == "containment"
    puzzle = make_task("puzzle24", {"calibration_items": 8})
    example = puzzle.sample(np.random.default_rng(0), "train")
    assert puzzle.score(example, f"({example.answer})", NO_IDS).value == 1.0


def test_all_datasets_that_evaluate_are_known():
    """By their source: a version of the library that evaluates more is noticed here."""
    evaluating = {
        name
        for name, (dataset, _) in DATASETS.items()
        if re.search(r"(\beval|parse_expr|sympify)\(answer", inspect.getsource(sys.modules[dataset.__module__]))
    }
    assert evaluating == EXPRESSION | LITERAL
