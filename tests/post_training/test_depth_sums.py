"""Targets and sums per depth, with numbers worked by hand."""

import math

import pytest
import torch

from worldmtp.post_training.depth_sums import sum_depths, targets_from_labels
from worldmtp.targets import DepthTargets

IGNORED = -100


def targets_at(targets, depth):
    """(position, token) of every valid target of the first row."""
    valid = targets.mask[0, :, depth - 1]
    return [(t, targets.targets[0, t, depth - 1].item()) for t in range(len(valid)) if valid[t]]


def test_a_target_counts_iff_its_own_token_is_in_the_completion():
    # position   0  1  2  3  4  5
    # text       5  6  7  8  1  0      prompt 5 6, completion 7 8 1, one pad
    input_ids = torch.tensor([[5, 6, 7, 8, 1, 0]])
    labels = torch.tensor([[IGNORED, IGNORED, 7, 8, 1, IGNORED]])
    attention_mask = torch.tensor([[1, 1, 1, 1, 1, 0]])
    targets = targets_from_labels(labels, input_ids, attention_mask, None, 3)
    assert targets_at(targets, 1) == [(1, 7), (2, 8), (3, 1)]
    assert targets_at(targets, 2) == [(0, 7), (1, 8), (2, 1)]
    assert targets_at(targets, 3) == [(0, 8), (1, 1)]


def test_no_target_lies_in_another_packed_document():
    # position   0  1  2 | 3  4  5  6      two documents, told by position_ids alone
    input_ids = torch.tensor([[5, 6, 1, 7, 8, 9, 1]])
    labels = torch.tensor([[IGNORED, 6, 1, IGNORED, 8, 9, 1]])
    position_ids = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    targets = targets_from_labels(labels, input_ids, None, position_ids, 3)
    assert targets_at(targets, 2) == [(0, 1), (3, 9), (4, 1)]
    assert targets_at(targets, 3) == [(3, 1)]


def test_sums_over_valid_positions_by_hand(make_model):
    model = make_model(depth=3)
    vocab = model.config.vocab_size
    # An LM head that reads channel v as the logit of token v; latents are then logits.
    with torch.no_grad():
        model.get_output_embeddings().weight.copy_(torch.eye(vocab, model.config.hidden_size))
    latents = [torch.zeros(1, 3, model.config.hidden_size) for _ in range(3)]
    latents[1][0, 0, 4] = math.log(3.0)  # p(4) = 3 / (V - 1 + 3), all others 1 / (V + 2)
    targets = DepthTargets(
        targets=torch.tensor([[[2, 4, 2], [2, 2, 2], [0, 0, 0]]]),
        mask=torch.tensor([[[True, True, False], [True, True, False], [False, False, False]]]),
    )
    sums = sum_depths(model, latents, targets)
    # depth 2: -log(3 / (V + 2)) at position 0 and log V (uniform) at position 1; depth 3 has no target
    expected = math.log((vocab + 2) / 3) + math.log(vocab)
    assert sums.losses.tolist() == pytest.approx([expected, 0.0], rel=1e-6)
    # position 1 is a tie of all tokens, whose first is 0 and not the target 2
    assert sums.top1_hits.tolist() == [1, 0]
    assert sums.counts.tolist() == [2, 0]
