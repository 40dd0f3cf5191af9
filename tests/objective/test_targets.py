"""Targets per depth against tables worked by hand."""

import pytest
import torch

from worldmtp.model.trunk import document_ids_from_position_ids, position_ids_from_attention_mask
from worldmtp.objective.targets import depth_targets


def table(result, k):
    """Depth k's targets, None where masked."""
    rows = zip(result.targets[:, :, k - 1].tolist(), result.mask[:, :, k - 1].tolist(), strict=True)
    return [[t if m else None for t, m in zip(targets, mask, strict=True)] for targets, mask in rows]


def test_depth_k_at_t_is_token_t_plus_k():
    ids = torch.tensor([[5, 6, 7, 8]])
    result = depth_targets(ids, torch.ones_like(ids, dtype=torch.bool), 3)
    assert table(result, 1) == [[6, 7, 8, None]]
    assert table(result, 2) == [[7, 8, None, None]]
    assert table(result, 3) == [[8, None, None, None]]


def test_a_shift_by_one_would_be_seen():
    # Every token is its own position, so the target names the distance it was taken at.
    ids = torch.arange(10)[None]
    result = depth_targets(ids, torch.ones_like(ids, dtype=torch.bool), 4)
    distance = result.targets - torch.arange(10)[None, :, None]
    for k in range(1, 5):
        assert distance[:, :, k - 1][result.mask[:, :, k - 1]].unique().tolist() == [k]
        assert int(result.mask[:, :, k - 1].sum()) == 10 - k


def test_right_padding():
    ids = torch.tensor([[5, 6, 7, 0, 0]])
    result = depth_targets(ids, torch.tensor([[True, True, True, False, False]]), 2)
    assert table(result, 1) == [[6, 7, None, None, None]]
    assert table(result, 2) == [[7, None, None, None, None]]


def test_left_padding():
    ids = torch.tensor([[0, 0, 5, 6, 7]])
    result = depth_targets(ids, torch.tensor([[False, False, True, True, True]]), 2)
    assert table(result, 1) == [[None, None, 6, 7, None]]
    assert table(result, 2) == [[None, None, 7, None, None]]


def test_padding_in_between_is_not_stepped_over():
    ids = torch.tensor([[5, 6, 0, 7, 8]])
    result = depth_targets(ids, torch.tensor([[True, True, False, True, True]]), 3)
    assert table(result, 1) == [[6, None, None, 8, None]]
    assert table(result, 2) == [[None] * 5]
    assert table(result, 3) == [[None] * 5]


def test_prompts_are_read_but_not_predicted():
    # Prompt 5 6 7, answer 8 9: its tokens are predicted from wherever depth k reaches, the prompt included.
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    loss_mask = torch.tensor([[False, False, False, True, True]])
    result = depth_targets(ids, torch.ones_like(loss_mask), 3, loss_mask=loss_mask)
    assert table(result, 1) == [[None, None, 8, 9, None]]
    assert table(result, 2) == [[None, 8, 9, None, None]]
    assert table(result, 3) == [[8, 9, None, None, None]]


def test_document_boundaries_are_not_crossed_at_any_depth():
    ids = torch.tensor([[5, 6, 7, 8, 9, 4]])
    documents = torch.tensor([[0, 0, 0, 1, 1, 2]])
    result = depth_targets(ids, torch.ones_like(ids, dtype=torch.bool), 2, document_ids=documents)
    assert table(result, 1) == [[6, 7, None, 9, None, None]]
    assert table(result, 2) == [[7, None, None, None, None, None]]


def test_five_packed_documents_have_the_counts_of_five_rows():
    lengths = [8, 7, 7, 6, 5]
    documents = torch.repeat_interleave(torch.arange(5), torch.tensor(lengths))[None]
    ids = torch.arange(33)[None]
    result = depth_targets(ids, torch.ones_like(ids, dtype=torch.bool), 4, document_ids=documents)
    # A document of n tokens has n - k targets at depth k: 33 - 5 k of them in all.
    assert result.mask.sum(dim=(0, 1)).tolist() == [28, 23, 18, 13]


def test_rows_shorter_than_the_depth_have_no_target_there():
    ids = torch.tensor([[5, 6]])
    result = depth_targets(ids, torch.ones_like(ids, dtype=torch.bool), 4)
    assert table(result, 1) == [[6, None]]
    assert not result.mask[:, :, 1:].any()
    assert result.targets.shape == (1, 2, 4)


def test_targets_beyond_the_row_are_zero():
    result = depth_targets(torch.tensor([[5, 6]]), torch.ones((1, 2), dtype=torch.bool), 2)
    assert result.targets.tolist() == [[[6, 0], [0, 0]]]


def test_no_depth_is_refused():
    with pytest.raises(ValueError, match="depths=0 must be at least 1"):
        depth_targets(torch.tensor([[5]]), torch.tensor([[True]]), 0)


def test_documents_start_where_positions_do_not_go_on():
    positions = torch.tensor([[0, 1, 2, 0, 0, 1], [4, 5, 6, 7, 8, 9]])
    assert document_ids_from_position_ids(positions).tolist() == [[0, 0, 0, 1, 2, 2], [0] * 6]


def test_positions_count_real_tokens():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    assert position_ids_from_attention_mask(mask).tolist() == [[0, 0, 0, 1], [0, 1, 1, 1], [0, 1, 2, 3]]
