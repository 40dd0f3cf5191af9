"""The closing table of a run."""

import dataclasses

import pytest

from worldmtp.analysis.summary import ArmSummary, RunSummary, read_summary, summary_table, table_cells, write_summary
from worldmtp.statistics import Interval


def interval(estimate):
    return Interval(estimate, estimate - 0.05, estimate + 0.05, 0.9, "prompt", "Wilson score", 200)


SUMMARY = RunSummary(
    arms=(
        ArmSummary("SFT", interval(0.4), (1.0, 0.81), seconds=60.4),
        ArmSummary("PPO + imagination", interval(0.75), (1.0, 0.9, 0.7), 0.71, 0.74, 180.0, "ppo", interval(0.6)),
    ),
    wall_clock_seconds=250.0,
    machine="2 cores",
    notes=("a note",),
)


def test_round_trip(tmp_path):
    path = write_summary(SUMMARY, tmp_path)
    assert read_summary(path) == SUMMARY
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_the_table_is_aligned_and_says_what_was_not_measured():
    header, rule, first, second = summary_table(SUMMARY).splitlines()
    assert header.split("  ")[0] == "arm"
    assert "accept d2  accept d3" in header
    assert "accept d1" not in header
    assert set(rule) == {"-"}
    assert len(first) == len(second) == len(header)
    assert first.split() == ["SFT", "-", "0.400", "[0.350,", "0.450]", "0.810", "-", "-", "-", "60"]
    assert "0.600 [0.550, 0.650]" in second
    assert second.endswith("0.750 [0.700, 0.800]      0.900      0.700            0.710            0.740      180")


def test_a_depth_that_no_text_reached_is_not_measured(tmp_path):
    summary = dataclasses.replace(SUMMARY, arms=(ArmSummary("PPO", interval(0.4), (1.0, 0.9, None)),))
    assert read_summary(write_summary(summary, tmp_path)) == summary
    assert summary_table(summary).splitlines()[2].split()[-1:] == ["0.900"]


def test_a_column_without_a_number_is_left_out():
    """Depth 3 and imagination were measured by no arm, depth 2 by one of two."""
    arms = (ArmSummary("before", interval(0.4), (1.0, None, None)), ArmSummary("PPO", interval(0.5), (1.0, 0.9, None)))
    header, before, after = table_cells(dataclasses.replace(SUMMARY, arms=arms))
    assert header == ["arm", "greedy [90 %]", "accept d2"]
    assert before == ["before", "0.400 [0.350, 0.450]", "-"]
    assert after == ["PPO", "0.500 [0.450, 0.550]", "0.900"]


def test_seconds_are_a_column_only_if_measured():
    untimed = dataclasses.replace(SUMMARY, arms=(dataclasses.replace(SUMMARY.arms[1], seconds=None),))
    assert summary_table(untimed).splitlines()[0].endswith("realized return")
    assert "seconds" in summary_table(SUMMARY).splitlines()[0]


def test_damage_is_named(tmp_path):
    path = write_summary(SUMMARY, tmp_path)
    path.write_text(path.read_text()[:-10])
    with pytest.raises(ValueError, match=r"summary.json is not JSON"):
        read_summary(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"summary.json is not a summary \(KeyError: 'arms'\)"):
        read_summary(path)
    path.write_text('{"arms": [{"arm": "x", "exact": {"estimate": 1.0}, "acceptance": []}]}')
    with pytest.raises(ValueError, match=r"is not a summary \(TypeError: .*'low'"):
        read_summary(path)


def test_a_summary_is_not_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SUMMARY.machine = "another"


def test_a_summary_is_printed_as_its_table():
    summary = dataclasses.replace(SUMMARY, notes=("8 prompts", "seed 3"))
    assert str(summary) == f"{summary_table(summary)}\n8 prompts\nseed 3"
