"""Ends of texts, cut where they are."""

import numpy as np
import pytest
import torch

from worldmtp.decoding.limits import StopRule, as_integer, first_stop, make_stop_rule


def stops(rows, old, new, **rule):
    whole = StopRule(**({"eos_token_ids": (), "stop_sequences": (), "max_new_tokens": 99} | rule))
    lengths, is_done = first_stop(torch.tensor(rows), torch.tensor(old), torch.tensor(new), whole)
    return lengths.tolist(), is_done.tolist()


def test_the_first_end_counts_and_stays():
    rows = [[5, 1, 5, 1, 0], [5, 5, 5, 5, 0], [5, 2, 1, 5, 0]]
    assert stops(rows, [0] * 3, [4] * 3, eos_token_ids=(1, 2)) == ([2, 4, 2], [True, False, True])


def test_what_is_not_emitted_ends_nothing():
    # Row 0: the token lies behind what was checked before; row 1: beyond what is there.
    assert stops([[1, 5, 5], [5, 5, 1]], [1, 0], [3, 2], eos_token_ids=(1,)) == ([3, 2], [False, False])


def test_a_stop_sequence_may_have_begun_before():
    rows = [[3, 4, 5, 6], [3, 4, 4, 5], [4, 5, 3, 4]]
    found = stops(rows, [2, 2, 2], [4, 4, 4], stop_sequences=((3, 4, 5), (4, 5)))
    assert found == ([3, 4, 4], [True, True, False])  # the last one had its end before, and goes on


def test_a_stop_sequence_longer_than_the_text():
    assert stops([[3, 4]], [0], [2], stop_sequences=((3, 4, 5),)) == ([2], [False])


def test_length_ends_a_text_inside_a_draft():
    assert stops([[3, 4, 5, 6]], [1], [4], max_new_tokens=3) == ([3], [True])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"stop_sequences": ((3,), ())}, "stop_sequences has an empty one"),
        ({"stop_sequences": ((3, -4),)}, "token id -4 ends texts and is negative"),
        ({"eos_token_ids": (-1,)}, "token id -1 ends texts and is negative"),
    ],
)
def test_wrong_rules(rule, message):
    with pytest.raises(ValueError, match=message):
        stops([[3]], [0], [1], **rule)


@pytest.mark.parametrize(
    "ends", [1, np.int64(1), torch.tensor(1), [1], (np.int32(1),), torch.tensor([1]), np.array([1])]
)
def test_ends_of_any_kind(ends):
    rule = make_stop_rule(ends, [], 3, vocab_size=2)
    assert rule == StopRule((1,), (), 3)
    assert [type(token) for token in rule.eos_token_ids] == [int]


def test_no_ends():
    assert make_stop_rule(None, (), np.int64(3), vocab_size=2) == StopRule((), (), 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, [], 3), "eos_token_id=1.0 has type float, expected a token id, or several"),
        (("1", [], 3), "eos_token_id='1' has type str"),
        ((True, [], 3), "eos_token_id=True has type bool"),
        ((torch.tensor(True), [], 3), "has type Tensor, expected a token id"),
        (([1, None], [], 3), r"eos_token_id\[1\]=None has type NoneType, expected a token id"),
        ((None, [1, 2], 3), r"stop_sequences\[0\]=1 has type int, .* pass a single sequence as \[\[1, 2\]\]"),
        ((None, ["ab"], 3), r"stop_sequences\[0\]='ab' has type str, .* encode text with the tokenizer"),
        ((None, "ab", 3), "stop_sequences='ab' has type str, expected sequences of token ids"),
        ((None, None, 3), "stop_sequences=None has type NoneType"),
        ((None, [[1, 2.0]], 3), r"stop_sequences\[0\]\[1\]=2.0 has type float"),
        ((None, [], 1.5), "max_new_tokens=1.5 has type float, expected an integer"),
    ],
    ids=str,
)
def test_ends_of_the_wrong_kind(arguments, message):
    with pytest.raises(TypeError, match=message):
        make_stop_rule(*arguments, vocab_size=9)


def test_the_last_id_of_the_vocabulary_ends_texts_and_the_next_does_not():
    assert make_stop_rule(8, [[8, 0]], 3, vocab_size=9).stop_sequences == ((8, 0),)
    with pytest.raises(ValueError, match=r"token id 9 .* outside the vocabulary, 0 \.\. 8, so it never would"):
        make_stop_rule(None, [[0, 9]], 3, vocab_size=9)


def test_one_element_counts_as_an_integer_and_its_bool_does_not():
    assert as_integer("n", torch.tensor([3])) == 3
    with pytest.raises(TypeError, match=r"n=.* expected an integer"):
        as_integer("n", np.bool_(True))
