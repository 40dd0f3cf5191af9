"""Ends of texts, cut where they are."""

import pytest
import torch

from worldmtp.decoding.stopping import StopRule, first_stop


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
