"""The time breakdown of a log."""

import pytest

from worldmtp.analysis.run_files import time_breakdown


def test_shares_are_means_over_iterations() -> None:
    # Two iterations of 2 s and 4 s, mean 3 s; update 1 s and 2 s, mean 1.5 s, half. An evaluation has no total.
    records = [
        {"step": 1, "time/total_seconds": 2.0, "time/update_seconds": 1.0, "time/env_seconds": 0.0},
        {"step": 1, "time/eval_seconds": 9.0},
        {"step": 2, "time/total_seconds": 4.0, "time/update_seconds": 2.0, "time/env_seconds": 0.3},
    ]
    breakdown = time_breakdown(records)
    assert breakdown is not None
    assert breakdown.iteration_seconds == 3.0
    assert breakdown.shares["update"] == pytest.approx(0.5)
    assert breakdown.shares["env"] == pytest.approx(0.05)
    assert "an iteration took 3.00 s" in str(breakdown)
    assert "PPO update 50.0%" in str(breakdown)


def test_a_log_without_iterations_has_none() -> None:
    assert time_breakdown([{"step": 0, "eval/exact": 0.5}]) is None


def test_a_phase_that_took_no_time_is_not_told() -> None:
    """Where replies are learnt in imagination there is no world model of the policy's own heads."""
    breakdown = time_breakdown([{"step": 1, "time/total_seconds": 2.0, "time/imagination_seconds": 1.5}])
    assert str(breakdown) == "an iteration took 2.00 s: imagination 75.0%"
