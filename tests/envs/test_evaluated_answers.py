"""Nothing that a policy writes is run as code by reasoning-gym's scorers."""

import numpy as np
import pytest
from reasoning_gym.factory import DATASETS

from worldmtp.envs import make_task
from worldmtp.envs.tasks.evaluated_answers import EXPRESSION, LITERAL, refusal

NO_IDS = np.zeros(0, dtype=np.int64)
EVALUATING = sorted(EXPRESSION | LITERAL)
ENTRY = {"metadata": {"numbers": [1, 3, 5, 9]}}


@pytest.fixture(scope="module")
def asked():
    """A task and an example of each of the datasets."""
    made = {}

    def of(name):
        if name not in made:
            task = make_task(name, {"calibration_items": 2, "compact": False})
            made[name] = task, task.sample(np.random.default_rng(0), "train")
        return made[name]

    return of


@pytest.mark.parametrize("name", EVALUATING)
def test_code_is_not_run_and_the_oracle_is_still_right(name, asked, tmp_path):
    task, example = asked(name)
    mark = tmp_path / "ran"
    payloads = [
        f"open({str(mark)!r}, 'w').write('x')",
        f"[open({str(mark)!r}, 'w').write('x')]",
        "S(__import__('sys')._getframe(3).f_locals['entry']['answer'])",
        "9**9**9**9",
        "[9 for x in range(10)]",
        "().__class__",
    ]
    for payload in payloads:
        score = task.score(example, payload, NO_IDS)
        assert (score.value, score.exact) == (0.0, False), payload
    assert not mark.exists()
    assert task.score(example, example.answer, NO_IDS).exact


@pytest.mark.parametrize("text", ["1*3*5 + 9", "(5 + 3)*(9 - 1)", "3*5 + 9 - 1 + 1/1"])
def test_arithmetic_reaches_the_scorer(text):
    assert refusal("countdown", text, ENTRY) is None


@pytest.mark.parametrize(
    "text", ["-4*(-2*x - 8)**(3/2)/3 + C", "sin(x)**2 + log(2*x)", "exp(-x)*x**8/15", "-896*x**4 + 3584*x**3"]
)
def test_the_answers_of_integrals_and_products_reach_the_scorer(text):
    assert refusal("simple_integration", text, ENTRY) is None


OTHER = {
    "huge exponent": "2**99",
    "tower": "((2**9)**9)**9",
    "huge number": "9" * 20,
    "unknown function": "f(x)",
    "attribute": "x.y",
    "string": "'a'",
    "condition": "x if x else y",
    "sympify": "S(1)",
    "two arguments": "sin(x, y)",
    "two lines": "1\n+1",
    "nothing": "",
    "no operator": "2x",
    "deep": "(" * 500 + "1" + ")" * 500,
    "long": "+".join(["1"] * 600),
}


@pytest.mark.parametrize("text", OTHER.values(), ids=OTHER)
def test_other_text_does_not(text):
    assert refusal("countdown", text, ENTRY) == "no_arithmetic"


def test_puzzle24_is_of_its_own_numbers(asked):
    """The library's scorer looks at the value alone, so that 1*2*3*4 would be right everywhere."""
    assert refusal("puzzle24", "1*3*5 + 9", ENTRY) is None
    assert refusal("puzzle24", "1*2*3*4", ENTRY) == "wrong_numbers"
    assert refusal("puzzle24", "9*5 - 9*3 + 5 + 1", ENTRY) == "wrong_numbers"
    task, _ = asked("puzzle24")
    examples = [task.sample(np.random.default_rng(seed), "train") for seed in range(8)]
    others = [e for e in examples if sorted(e.meta["entry"]["metadata"]["numbers"]) != [1, 2, 3, 4]]
    assert [task.score(example, "1*2*3*4", NO_IDS).value for example in others] == [0.0] * len(others)


def test_all_datasets_that_evaluate_are_known():
    """By their source: a version of the library that evaluates more is noticed here."""
    import inspect
    import re
    import sys

    evaluating = {
        name
        for name, (dataset, _) in DATASETS.items()
        if re.search(r"(\beval|parse_expr|sympify)\(answer", inspect.getsource(sys.modules[dataset.__module__]))
    }
    assert evaluating == EXPRESSION | LITERAL
