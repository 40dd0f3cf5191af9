"""Demonstrations: rows as TRL takes them, and every refusal at the border."""

import pytest

from worldmtp.post_training import build_demonstrations

EOS = 1


def build(pairs, **options):
    return build_demonstrations(pairs, **{"eos_token_id": EOS, "vocab_size": 10, **options})


def test_rows_are_prompt_answer_eos_and_labels_hide_the_prompt():
    dataset = build([([2, 3, 4], [5, 6]), ([7], [8])])
    assert dataset.column_names == ["input_ids", "labels"]
    assert dataset["input_ids"][:] == [[2, 3, 4, 5, 6, 1], [7, 8, 1]]
    assert dataset["labels"][:] == [[-100, -100, -100, 5, 6, 1], [-100, 8, 1]]


def test_an_answer_that_ends_with_eos_keeps_one():
    assert build([([2], [5, EOS])])["input_ids"][0] == [2, 5, EOS]


def test_any_iterable_of_any_sequences():
    assert len(build(pair for pair in [((2,), (3,)), ((4,), (5,))])) == 2


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], r"empty: got 0 \(prompt, answer\) pairs, expected at least 1"),
        ([([], [5])], "Demonstration 0 has an empty prompt"),
        ([([2], [3]), ([2], [])], "Demonstration 1 has an empty answer"),
        ([([2], [EOS])], "Demonstration 0 has an empty answer"),
        ([([2], [5, EOS, 6])], r"EOS \(id 1\) inside its answer, at 1 of 4 tokens"),
        ([([2], [10])], r"token ids 1..10, expected 0..9: the tokenizer is larger than the model's vocabulary"),
        ([([-1], [2])], r"token ids -1..2, expected 0..9"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        build(pairs)


def test_a_row_that_is_too_long_is_refused_and_not_cut():
    with pytest.raises(ValueError, match="has 5 tokens with EOS, expected at most max_length=4"):
        build([([2, 3], [4, 5])], max_length=4)
    assert len(build([([2, 3], [4, 5])], max_length=5)) == 1
