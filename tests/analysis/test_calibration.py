"""Reliability bins and ECE."""

import numpy as np
import pytest

from worldmtp.analysis.metrics import RootedPredictions, reliability


def rooted(confidence, agrees):
    shape = (1, len(confidence), 1)
    zeros = np.zeros(shape)
    return RootedPredictions(
        log_ratio=zeros,
        cross_entropy=zeros,
        chain_cross_entropy=zeros,
        agrees=np.array(agrees, dtype=bool).reshape(shape),
        confidence=np.array(confidence, dtype=np.float64).reshape(shape),
        entropy=zeros,
        chain_entropy=zeros,
        valid=np.ones(shape, dtype=bool),
    )


def test_bins_and_error_by_hand():
    # Bins of width .25. Bin 1: .3, .4 -> confidence .35, accuracy .5, gap .15. Bin 3: .9, .9 -> .9, 1, gap .1.
    table = reliability(rooted([0.3, 0.4, 0.9, 0.9], [True, False, True, True]), 1, num_bins=4)
    assert table.count.tolist() == [0, 2, 0, 2]
    assert table.confidence[[1, 3]] == pytest.approx([0.35, 0.9])
    assert table.accuracy[[1, 3]] == pytest.approx([0.5, 1.0])
    assert np.isnan(table.accuracy[[0, 2]]).all()
    assert table.expected_calibration_error == pytest.approx(0.5 * 0.15 + 0.5 * 0.1)


def test_the_borders_have_a_place():
    table = reliability(rooted([0.0, 0.5, 1.0, 1.0 + 1e-7], [False, True, True, True]), 1, num_bins=2)
    assert table.count.tolist() == [1, 3]


def test_what_is_not_a_probability_is_refused():
    with pytest.raises(ValueError, match="not log-probabilities or logits"):
        reliability(rooted([-0.2, 0.5], [True, True]), 1)
    with pytest.raises(ValueError, match=r"depth=2; the artefact has depths 1..1"):
        reliability(rooted([0.5], [True]), 2)


def test_no_prediction_no_error():
    nothing = rooted([0.5], [True])
    nothing.valid[:] = False
    assert np.isnan(reliability(nothing, 1).expected_calibration_error)
