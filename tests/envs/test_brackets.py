"""Brackets against all words of a small length, listed by brute force, and against walks done by hand."""

from itertools import product

import numpy as np
import pytest

from worldmtp.envs import Example, hack_probes
from worldmtp.envs.task import DenseTask
from worldmtp.envs.tasks.brackets import Brackets

NO_IDS = np.zeros(0, dtype=np.int64)
CLOSING = {"(": ")", "[": "]"}


def is_balanced(word):
    """By taking innermost pairs away until nothing changes, which has nothing in common with a stack."""
    while word:
        shorter = word.replace("()", "").replace("[]", "")
        if shorter == word:
            return False
        word = shorter
    return True


def words(num_pairs):
    return ["".join(word) for word in product("()[]", repeat=2 * num_pairs) if is_balanced("".join(word))]


WORDS = {num_pairs: words(num_pairs) for num_pairs in (1, 2, 3, 4)}


def test_there_are_as_many_words_as_catalan_numbers_say():
    # 1, 2, 5, 14 shapes, times 2 to the number of pairs
    assert [len(WORDS[num_pairs]) for num_pairs in (1, 2, 3, 4)] == [2, 8, 40, 224]


def test_prompts_are_the_beginnings_of_words_and_all_of_them():
    task = Brackets(min_pairs=2, max_pairs=4, max_prefix=3)
    expected = {
        f"{num_pairs}{word[:length]}=" for num_pairs in (2, 3, 4) for word in WORDS[num_pairs] for length in (1, 2, 3)
    }
    assert task.universe_size == len(expected)
    rng = np.random.default_rng(0)
    examples = [task.sample(rng, "train") for _ in range(1500)]
    assert {example.prompt for example in examples} == expected
    for example in examples:
        assert example.prompt[1:-1] + example.answer in WORDS[int(example.prompt[0])]
        score = task.score(example, example.answer, NO_IDS)
        assert (score.value, score.exact, score.reason) == (1.0, True, "ok")


@pytest.mark.parametrize("prompt", ["3(=", "3([=", "3()=", "3(()=", "3()[]=", "3([])=", "2[=", "3((["])
def test_answers_are_told_from_all_other_texts(prompt):
    task = Brackets(min_pairs=2, max_pairs=4, max_prefix=3)
    example = Example(prompt)
    num_pairs, prefix = int(prompt[0]), prompt[1:].removesuffix("=")
    right = {word[len(prefix) :] for word in WORDS[num_pairs] if word.startswith(prefix)}
    texts = ["".join(text) for length in range(6) for text in product("()[]", repeat=length)]
    assert {text for text in texts if task.score(example, text, NO_IDS).exact} == right


def test_progress_is_the_share_of_right_brackets_and_ends_at_the_first_that_cannot_be_right():
    """By brute force: a text is right as far as it begins some word with the asked number of pairs."""
    task = Brackets(min_pairs=3, max_pairs=3, max_prefix=2)
    assert isinstance(task, DenseTask)
    example = Example("3([=")  # four brackets are missing
    rests = [word[2:] for word in WORDS[3] if word.startswith("([")]
    for length in range(5):
        for characters in product("()[]", repeat=length):
            text = "".join(characters)
            num_right = max(n for n in range(length + 1) if any(rest.startswith(text[:n]) for rest in rests))
            ended = num_right < length or text in rests
            progress = task.progress(example, text, NO_IDS)
            assert (progress.value, progress.ended) == (num_right / 4, ended), text
            assert task.score(example, text, NO_IDS).value == progress.value


@pytest.mark.parametrize(
    ("text", "value", "reason", "components"),
    [
        # "2(" lacks three brackets
        ("", 0.0, "unfinished", {"right": 0.0, "still_open": 1.0}),
        ("[", 1 / 3, "unfinished", {"right": 1 / 3, "still_open": 2.0}),
        ("[)", 1 / 3, "wrong_close", {"right": 1 / 3, "still_open": 2.0}),
        ("[(", 1 / 3, "too_many_open", {"right": 1 / 3, "still_open": 2.0}),
        (")x", 1 / 3, "no_bracket", {"right": 1 / 3, "still_open": 0.0}),
        ("))", 1 / 3, "wrong_close", {"right": 1 / 3, "still_open": 0.0}),
        ("[])", 1.0, "ok", {"right": 1.0, "still_open": 0.0}),
        ("[])()", 3 / 5, "overlong", {"right": 1.0, "still_open": 0.0}),  # three of five: padding is not free
    ],
)
def test_what_is_wrong_is_told(text, value, reason, components):
    score = Brackets(min_pairs=2, max_prefix=3).score(Example("2(="), text, NO_IDS)
    assert (score.value, score.reason, score.exact) == (pytest.approx(value), reason, reason == "ok")
    assert score.components == pytest.approx(components)


def test_exact_reward_is_paid_at_the_end_only():
    task = Brackets(reward="exact", min_pairs=2, max_prefix=3)
    assert [task.progress(Example("2(="), text, NO_IDS).value for text in ("", "[", "[]", "[])")] == [0, 0, 0, 1]
    assert task.score(Example("2(="), "[]", NO_IDS).value == 0.0


def test_nothing_is_paid_for_texts_that_answer_nothing():
    task = Brackets()
    rng = np.random.default_rng(0)
    for example in (task.sample(rng, "train") for _ in range(50)):
        assert all(task.score(example, probe, NO_IDS).value == 0.0 for probe in hack_probes())
        hidden = [task.score(example, probe, NO_IDS) for probe in hack_probes(example.answer)]
        assert all(score.value < 1.0 and not score.exact for score in hidden)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": "()["}, r"kinds='\(\)\[' must be pairs"),
        ({"kinds": "(())"}, "must be pairs of different signs"),
        ({"max_pairs": 10}, "max_pairs <= 9, got 4 and 10"),
        ({"min_pairs": 2, "max_prefix": 4}, r"max_prefix=4 must lie in 1\.\.3"),
        ({"reward": "dense"}, "reward='dense' is unknown"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Brackets(**arguments)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [("4(]=", "wrong_close"), ("1((=", "too_many_open"), ("((=", "no number"), ("2()()=", "complete")],
)
def test_a_prompt_that_begins_no_word_is_refused(prompt, reason):
    with pytest.raises(ValueError, match=rf"is no number of pairs and the beginning of such a word: {reason}"):
        Brackets().score(Example(prompt), "", NO_IDS)
