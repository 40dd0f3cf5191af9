"""What each depth is to predict of Hugging Face's labels, with numbers worked by hand."""

import torch

IGNORED = -100


def targets_at(targets, depth):
    """(position, token) of every valid target of the first row."""
    valid = targets.mask[0, :, depth - 1]
    return [(t, targets.targets[0, t, depth - 1].item()) for t in range(len(valid)) if valid[t]]


def test_a_target_counts_iff_its_own_token_is_in_the_completion(make_model):
    # position   0  1  2  3  4  5
    # text       5  6  7  8  1  0      prompt 5 6, completion 7 8 1, one pad
    input_ids = torch.tensor([[5, 6, 7, 8, 1, 0]])
    labels = torch.tensor([[IGNORED, IGNORED, 7, 8, 1, IGNORED]])
    attention_mask = torch.tensor([[1, 1, 1, 1, 1, 0]])
    targets = make_model("llama", depth=3).targets(input_ids, attention_mask, None, labels)
    assert targets_at(targets, 1) == [(1, 7), (2, 8), (3, 1)]
    assert targets_at(targets, 2) == [(0, 7), (1, 8), (2, 1)]
    assert targets_at(targets, 3) == [(0, 8), (1, 1)]


def test_no_target_lies_in_another_packed_document(make_model):
    # position   0  1  2 | 3  4  5  6      two documents, told by position_ids alone
    input_ids = torch.tensor([[5, 6, 1, 7, 8, 9, 1]])
    labels = torch.tensor([[IGNORED, 6, 1, IGNORED, 8, 9, 1]])
    position_ids = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    targets = make_model("llama", depth=3).targets(input_ids, None, position_ids, labels)
    assert targets_at(targets, 2) == [(0, 1), (3, 9), (4, 1)]
    assert targets_at(targets, 3) == [(3, 1)]


def test_a_stride_leaps_over_tokens(make_model):
    # position   0  1  2  3  4  5      depths 1, 2, 3 look 1, 3, 5 tokens ahead
    input_ids = torch.tensor([[5, 6, 7, 8, 9, 4]])
    model = make_model("llama", depth=3, head="linear", stride=2)
    targets = model.targets(input_ids, None, None, input_ids)
    assert targets_at(targets, 1) == [(0, 6), (1, 7), (2, 8), (3, 9), (4, 4)]
    assert targets_at(targets, 2) == [(0, 8), (1, 9), (2, 4)]
    assert targets_at(targets, 3) == [(0, 4)]
