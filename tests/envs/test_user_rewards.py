"""Rewards that users write, named by their path or given as functions."""

import re

import numpy as np
import pytest

from worldmtp.envs import Example
from worldmtp.envs.tasks.data import DataTask
from worldmtp.envs.tasks.function import FunctionTask

NO_IDS = np.zeros(0, dtype=np.int64)


def write_jsonl(path):
    path.write_text('{"prompt": "2+3=", "answer": "5"}\n')


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("length", "reward='length' must be '<module>:<function>'"),
        ("no_such_module:length", "the module 'no_such_module' cannot be imported"),
        ("{module}:lenght", "has no 'lenght'; did you mean 'length'"),
        ("{module}:zzz", r"has no 'zzz'; define it there as zzz\(example, text\)"),
    ],
)
def test_a_reward_that_is_not_there_is_told(tmp_path, my_rewards, reward, message):
    write_jsonl(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=message):
        DataTask(tmp_path / "a.jsonl", reward.format(module=my_rewards))


def test_a_reward_that_is_no_function_is_told(tmp_path, my_rewards):
    write_jsonl(tmp_path / "a.jsonl")
    with pytest.raises(TypeError, match=r":NUMBER' is a int; expected a function \(example, text\) -> float"):
        DataTask(tmp_path / "a.jsonl", f"{my_rewards}:NUMBER")


@pytest.mark.parametrize(
    ("function", "signature"),
    [
        (lambda example: 1.0, "(example)"),
        (lambda example, text, ids: 1.0, "(example, text, ids)"),
        (lambda: 1.0, "()"),
        (lambda *, example, text: 1.0, "(*, example, text)"),
    ],
)
def test_a_reward_that_cannot_be_called_is_told_at_once(tmp_path, function, signature):
    write_jsonl(tmp_path / "a.jsonl")
    message = rf"<lambda> is defined with {re.escape(signature)} and called with \(example, text\): "
    with pytest.raises(ValueError, match=message):
        DataTask(tmp_path / "a.jsonl", function)
    with pytest.raises(ValueError, match=message):
        FunctionTask(lambda rng: Example("a="), function)


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (None, TypeError, "<lambda> returned None of type NoneType; expected a number, or a Score"),
        ("yes", TypeError, "<lambda> returned 'yes' of type str; expected a number, or a Score"),
        ("0.5", TypeError, "<lambda> returned '0.5' of type str; expected a number, or a Score"),
        (b"1", TypeError, "<lambda> returned b'1' of type bytes; expected a number, or a Score"),
        (float("nan"), ValueError, r"<lambda> returned nan; give a failed answer a finite number, such as 0\.0"),
        (float("inf"), ValueError, "<lambda> returned inf; give a failed answer a finite number"),
    ],
)
def test_a_reward_that_says_no_number_is_told(tmp_path, returned, error, message):
    write_jsonl(tmp_path / "a.jsonl")
    for task in (
        DataTask(tmp_path / "a.jsonl", lambda example, text: returned),
        FunctionTask(lambda rng: Example("a="), lambda example, text: returned),
    ):
        with pytest.raises(error, match=message):
            task.score(Example("a="), "x", NO_IDS)
