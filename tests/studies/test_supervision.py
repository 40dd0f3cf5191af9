"""Supervision density counted by hand."""

import pytest
import torch

from worldmtp.objective.targets import DepthTargets, depth_targets
from worldmtp.studies.supervision import SupervisionDensity, supervision_density

IDS = torch.zeros((2, 4), dtype=torch.long)


def test_whole_texts_by_hand():
    # Four tokens: 3, 2 and 1 targets at depths 1, 2 and 3; six for three where nominally it is nine.
    targets = depth_targets(IDS, torch.ones_like(IDS, dtype=torch.bool), 3)
    assert supervision_density(targets) == SupervisionDensity((3.0, 2.0, 1.0), 2.0, 3)


def test_padding_and_documents_take_targets_away():
    # Three real tokens (2, 1, 0 targets), and two documents of two (1 + 1, 0, 0): 4, 1, 0 over two texts.
    real = torch.tensor([[True, True, True, False], [True] * 4])
    documents = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1]])
    found = supervision_density(depth_targets(IDS, real, 3, document_ids=documents))
    assert found == SupervisionDensity((2.0, 0.5, 0.0), 5 / 4, 3)


def test_next_token_training_gains_nothing():
    assert supervision_density(depth_targets(IDS, torch.ones_like(IDS, dtype=torch.bool), 1)).gain == 1.0


def test_nothing_to_compare_with_is_refused():
    empty = DepthTargets(torch.zeros((1, 2, 2), dtype=torch.long), torch.zeros((1, 2, 2), dtype=torch.bool))
    with pytest.raises(ValueError, match="no text has a target at depth 1; check labels and masks"):
        supervision_density(empty)
