"""The optimism gap, step by step."""

import pytest

from worldmtp.agents.episodes_config import EpisodesConfig
from worldmtp.agents.imagination.gates import OptimismGap, SkillGate


def measured(gap: OptimismGap, gaps: list[float]) -> OptimismGap:
    for value in gaps:
        gap.measure(0.5 + value, 0.5)
    return gap


def test_a_steady_gap_that_no_batch_shows_halves_the_number_of_batches() -> None:
    """Gaps .3 -.1 .3 -.1 .3 .1: mean .1333, 1.66 standard errors of .0803. One more of .3: .1571 is 2.19 of .0719."""
    gap = measured(OptimismGap(8, 8), [0.3, -0.1, 0.3, -0.1, 0.3, 0.1])
    assert gap.mean == pytest.approx(0.1333, abs=1e-4)
    assert gap.standard_error == pytest.approx(0.0803, abs=1e-4)
    assert gap.num_batches == 8
    assert measured(gap, [0.3]).num_batches == 4


def test_it_halves_to_zero_and_needs_new_batches_each_time() -> None:
    gap = OptimismGap(8, 8)
    found = []
    for value in [0.2, 0.3] * 8:
        gap.measure(0.5 + value, 0.5)
        found.append(gap.num_batches)
    assert found == [8, 8, 8, 4, 4, 4, 4, 2, 2, 2, 2, 1, 1, 1, 1, 0]


def test_it_grows_again_where_the_promises_are_kept_and_never_beyond_its_most() -> None:
    gap = measured(OptimismGap(8, 2), [0.2, 0.3] * 4)
    assert gap.num_batches == 0
    found = []
    for value in [0.1, -0.1] * 8:
        gap.measure(0.5 + value, 0.5)
        found.append(gap.num_batches)
    assert found == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2]


def test_a_world_that_is_better_than_promised_shuts_nothing() -> None:
    """Pessimism costs chances and misleads nobody."""
    assert measured(OptimismGap(8, 8), [-0.2, -0.3] * 8).num_batches == 8


def test_its_state_goes_on() -> None:
    gap = measured(OptimismGap(8, 8), [0.2, 0.3, 0.2])
    other = OptimismGap(8, 8)
    other.load_state_dict(gap.state_dict())
    assert measured(other, [0.3]).num_batches == measured(gap, [0.3]).num_batches == 4


@pytest.mark.parametrize("window", [4, 5])
def test_the_shortest_window_that_the_config_takes_still_decides(window: int) -> None:
    assert measured(OptimismGap(EpisodesConfig(gap_batches=window).gap_batches, 8), [0.2, 0.3] * 2).num_batches == 4


def test_a_window_that_would_never_decide_is_refused() -> None:
    with pytest.raises(ValueError, match="gap_batches=3 must be at least 4"):
        EpisodesConfig(gap_batches=3)


def test_a_small_gap_shuts_nothing_however_sure_it_is() -> None:
    """A gap of .010 and .011 has a standard error of a few ten-thousandths; with least=.02 it is let be, .03 is not."""
    tiny = [0.010, 0.011] * 8
    assert measured(OptimismGap(8, 8), tiny).num_batches == 0
    assert measured(OptimismGap(8, 8, least=0.02), tiny).num_batches == 8
    assert measured(OptimismGap(8, 8, least=0.02), [0.03, 0.031] * 8).num_batches == 0


def test_a_gap_too_small_to_matter_opens_again() -> None:
    gap = measured(OptimismGap(8, 8, least=0.02), [0.2, 0.3] * 8)
    assert gap.num_batches == 0
    assert measured(gap, [0.010, 0.011] * 8).num_batches == 8


# The skill of imagined latents


def skilled(gate: SkillGate, skills: list[float]) -> list[bool]:
    """Whether the gate is open after each batch."""
    found = []
    for skill in skills:
        gate.measure(skill)
        found.append(gate.is_open)
    return found


def test_the_gate_of_skill_opens_two_standard_errors_above_chance_and_not_before_its_window_is_full() -> None:
    """.1 .3 .1 .3: mean .2, standard error .0577. With -.1 for the first .1: mean .15 is 1.57 of .0957."""
    gate = SkillGate(4, gated=True)
    assert skilled(gate, [0.1, 0.3, 0.1, 0.3]) == [False, False, False, True]
    assert skilled(SkillGate(4, gated=True), [-0.1, 0.3, 0.1, 0.3])[-1] is False
    assert skilled(gate, [-0.4]) == [False], "it shuts as it opens"


def test_no_skill_at_all_is_not_above_chance() -> None:
    assert skilled(SkillGate(2, gated=True), [0.0] * 4) == [False] * 4
    assert skilled(SkillGate(2, gated=True), [-0.2] * 4) == [False] * 4


def test_a_placebo_waits_as_long_and_opens_whatever_its_skill() -> None:
    assert skilled(SkillGate(3, gated=False), [-0.2] * 4) == [False, False, True, True]


def test_the_state_of_the_gate_of_skill_goes_on() -> None:
    gate, other = SkillGate(2, gated=True), SkillGate(2, gated=True)
    gate.measure(0.2)
    other.load_state_dict(gate.state_dict())
    assert skilled(other, [0.3]) == [True]
