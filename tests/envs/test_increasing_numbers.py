"""IncreasingNumbers: counts worked by hand, and what RL4LMs' reward pays that this one does not."""

import numpy as np
import pytest

from worldmtp.envs import Example, hack_probes
from worldmtp.envs.tasks.increasing_numbers import IncreasingNumbers

NO_IDS = np.zeros(0, dtype=np.int64)
EXAMPLE = Example("3 7 12=", "13 14 15 16 17")


@pytest.mark.parametrize(
    ("text", "count", "value"),
    [
        ("13 14 15 16 17", 5, 1.0),
        ("21 30 39 48 57", 5, 1.0),  # steps of 9
        ("13 14 15", 3, 3 / 5),
        ("13 14 15 16 17 18", 6, 5 / 6),  # more than asked for: all of them follow, but it is not the asked form
        ("13 14 14 15 16", 2, 2 / 5),  # ends at the repeat, though what follows increases
        ("22 23 24 25 26", 0, 0.0),  # a step of 10
        ("13 x 14 15 16 17", 1, 1 / 6),  # RL4LMs skips the word
        ("13 1e9", 1, 1 / 5),  # a number to float
        ("13 014 15", 1, 1 / 5),
        ("1 2 3 4 5", 0, 0.0),  # increasing, but not from the prompt's last number on
        ("inf", 0, 0.0),
        ("", 0, 0.0),
    ],
)
def test_numbers_that_follow_are_counted(text, count, value):
    score = IncreasingNumbers().score(EXAMPLE, text, NO_IDS)
    assert (score.components, score.value) == ({"increasing": float(count)}, pytest.approx(value))
    assert score.exact == (count == 5 and value == 1.0)


def test_answers_are_right_and_prompts_as_many_as_stated():
    task = IncreasingNumbers(num_given=2, max_first=4, max_step=3)
    rng = np.random.default_rng(0)
    examples = [task.sample(rng, "train") for _ in range(500)]
    expected = {f"{first} {first + step}=" for first in range(5) for step in (1, 2, 3)}
    assert {example.prompt for example in examples} == expected
    assert task.universe_size == len(expected) == 15
    assert all(task.score(example, example.answer, NO_IDS).exact for example in examples)
    one = IncreasingNumbers(num_given=1, max_first=9)
    assert one.universe_size == 10
    assert " " not in one.sample(rng, "train").prompt


def test_no_constant_text_is_worth_much():
    task = IncreasingNumbers()
    rng = np.random.default_rng(0)
    examples = [task.sample(rng, "train") for _ in range(120)]
    for probe in hack_probes():
        assert max(task.score(example, probe, NO_IDS).value for example in examples) == 0.0
    for example in examples:
        assert not any(task.score(example, probe, NO_IDS).exact for probe in hack_probes(example.answer))
    constants = [" ".join(map(str, range(first, first + 5))) for first in range(100)]
    best = max(np.mean([task.score(example, text, NO_IDS).value for example in examples]) for text in constants)
    # nine of the 37 + 18 last numbers let a first number follow, and the likeliest of them are no third of all
    assert best < 1 / 3


def test_impossible_arguments_and_prompts_are_refused():
    with pytest.raises(ValueError, match="got 0, 5, 9 and 36"):
        IncreasingNumbers(num_given=0)
    with pytest.raises(ValueError, match="'abc=' has no last number"):
        IncreasingNumbers().score(Example("abc="), "1", NO_IDS)
