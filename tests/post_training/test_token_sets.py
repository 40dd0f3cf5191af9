"""Which tokens are learnt: padded on either side, packed, and of rows that do not count."""

import pytest
import torch

from worldmtp.post_training.token_sets import TokenChoice, num_targets, text_starts

IGNORED = -100


def chosen(kind, ids, labelled, mask=None, positions=None, **options):
    ids = torch.tensor(ids)
    labels = torch.where(torch.tensor(labelled).bool(), ids, IGNORED)
    mask = None if mask is None else torch.tensor(mask)
    positions = None if positions is None else torch.tensor(positions)
    found = TokenChoice(kind, **options).labels(ids, labels, mask, positions)
    return [[token for token in row if token != IGNORED] for row in found.tolist()]


# A conversation: prompt 2 3, said 4 5, replied 6 7, said 8.
TEXT, SAID = [2, 3, 4, 5, 6, 7, 8], [0, 0, 1, 1, 0, 0, 1]
KINDS = [
    ("policy", [4, 5, 8]),
    ("completion", [4, 5, 6, 7, 8]),
    ("observation", [6, 7]),
    ("all", [3, 4, 5, 6, 7, 8]),
]


@pytest.mark.parametrize(("kind", "expected"), KINDS)
def test_padding_on_either_side_changes_nothing(kind, expected):
    ids = [[*TEXT, 0, 0], [0, 0, *TEXT]]
    labelled = [[*SAID, 0, 0], [0, 0, *SAID]]
    mask = [[1] * 7 + [0, 0], [0, 0] + [1] * 7]
    assert chosen(kind, ids, labelled, mask) == [expected, expected]


@pytest.mark.parametrize(("kind", "expected"), KINDS)
def test_documents_packed_into_a_row_are_texts_of_their_own(kind, expected):
    # Behind it a text of which nothing was said: no completion, though there are labels before it in the row.
    ids, labelled = [[*TEXT, 9, 10, *TEXT]], [[*SAID, 0, 0, *SAID]]
    positions = [[*range(7), 0, 1, *range(7)]]
    between = [10] if kind == "all" else []
    assert chosen(kind, ids, labelled, positions=positions) == [[*expected, *between, *expected]]


def test_a_mask_of_the_policy_stands_for_the_labels():
    # Everything after the prompt is labelled, as TRL's GRPO does; the mask says what was said.
    everything, mask = [[0, 0, 1, 1, 1, 1, 1]], torch.tensor([SAID]).bool()
    for kind, expected in KINDS:
        assert chosen(kind, [TEXT], everything, policy_mask=mask) == [expected]


def test_rows_that_do_not_count_have_no_labels():
    found = chosen("policy", [TEXT, TEXT], [SAID, SAID], rows=torch.tensor([True, False]))
    assert found == [[4, 5, 8], []]


def test_another_batch_than_the_one_announced_is_refused():
    with pytest.raises(
        ValueError, match=r"rows has the shape \(1,\) and the forward's batch \(2, 7\): TRL ran another"
    ):
        chosen("policy", [TEXT, TEXT], [SAID, SAID], rows=torch.tensor([True]))
    with pytest.raises(ValueError, match=r"policy_mask has the shape \(1, 3\)"):
        chosen("policy", [TEXT], [SAID], policy_mask=torch.ones(1, 3, dtype=torch.bool))


def test_where_texts_start_and_how_many_targets_there_are():
    real = torch.tensor([[False, True, True, False], [True, True, True, True]])
    positions = torch.tensor([[0, 0, 1, 2], [0, 1, 0, 1]])
    assert text_starts(real, None).tolist() == [[False, True, False, False], [True, False, False, False]]
    assert text_starts(real, positions).tolist() == [[False, True, False, False], [True, False, True, False]]
    assert num_targets(torch.tensor([[7, 7, IGNORED], [IGNORED, IGNORED, 7]])) == 2  # nothing is before a row's first
