"""Lambda, depth windows, frequency and step plans: values by hand, at boundaries, and unbiased by enumeration."""

import math
from statistics import NormalDist

import pytest
import torch

from worldmtp.objective import MTPObjective
from worldmtp.objective.loss import position_mask
from worldmtp.objective.plan import (
    DEPTH_WEIGHTINGS,
    CoefSchedule,
    DepthWindow,
    Frequency,
    Progress,
    StepPlan,
    active_depths,
)


def plan(
    *,
    step=0,
    max_steps=100,
    seed=0,
    num_depths=4,
    weighting="uniform",
    coef=None,
    window=None,
    frequency=None,
    tokens=0,
):
    objective = MTPObjective(
        depth_weighting=weighting,
        coef=coef or CoefSchedule(),
        window=window or DepthWindow(),
        frequency=frequency or Frequency(),
    )
    return objective.plan(num_depths, Progress(step, max_steps, tokens), seed)


# Lambda


def test_deepseek_steps_at_ten_trillion_tokens():
    coef = CoefSchedule(kind="step", start=0.3, end=0.1, begin=10e12, unit="tokens")
    tokens = (0, 10**13 - 1, 10**13, 14_800_000_000_000)
    assert [coef.value(Progress(0, None, count)) for count in tokens] == [0.3, 0.3, 0.1, 0.1]


def test_step_counts_steps_done():
    coef = CoefSchedule(kind="step", start=0.3, end=0.1, begin=0.3)
    assert [coef.value(Progress(step, 10)) for step in (0, 2, 3, 9, 10)] == [0.3, 0.3, 0.1, 0.1, 0.1]


@pytest.mark.parametrize(
    ("kind", "middle"),
    [
        # A quarter of the way: 0.3 - 0.2 / 4, and 0.3 - 0.2 (1 - cos 45) / 2
        ("linear", 0.25),
        ("cosine", 0.3 - 0.2 * (1 - math.sqrt(0.5)) / 2),
    ],
)
def test_ramps_by_hand(kind, middle):
    coef = CoefSchedule(kind=kind, start=0.3, end=0.1, begin=100.0, duration=40.0, unit="steps")
    assert [coef.value(Progress(step)) for step in (0, 99, 100)] == [0.3] * 3
    assert coef.value(Progress(110)) == pytest.approx(middle, rel=1e-14)
    assert coef.value(Progress(120)) == pytest.approx(0.2, rel=1e-14)
    assert [coef.value(Progress(step)) for step in (140, 141, 10**6)] == [0.1] * 3


def test_a_line_ends_at_its_end_exactly():
    # start + (end - start) would leave 0.09999999999999998.
    coef = CoefSchedule(kind="linear", start=1.0, end=0.1, duration=1.0)
    assert [coef.value(Progress(step, 7)) for step in (0, 7)] == [1.0, 0.1]


def test_constant_needs_no_max_steps():
    assert CoefSchedule(start=0.7).value(Progress(12, None)) == 0.7


def test_a_fraction_of_unknown_length_is_refused():
    coef = CoefSchedule(kind="linear", start=0.3, end=0.1, duration=1.0)
    with pytest.raises(
        ValueError, match=r"coef\.unit='fraction' needs to know how long training is.*'steps' or 'token"
    ):
        coef.value(Progress(3, None))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "cosin"}, r"coef\.kind='cosin' is unknown; did you mean 'cosine'\?"),
        ({"unit": "epochs"}, r"coef\.unit='epochs' is unknown; choose from"),
        ({"start": -0.1}, r"coef\.start=-0\.1 must be finite and not negative"),
        ({"kind": "step", "end": math.nan}, r"coef\.end=nan must be finite"),
        ({"end": 0.1}, r"a constant coef has a start alone"),
        ({"kind": "linear", "duration": 1.0}, r"coef\.kind='linear' goes from start to end; give coef\.end"),
        ({"kind": "linear", "end": 0.1}, r"coef\.kind='linear' needs a positive coef\.duration, in fraction"),
        ({"kind": "step", "end": 0.1, "duration": 0.5}, r"a step changes at once, at coef\.begin"),
        ({"kind": "step", "end": 0.1, "begin": 1000.0}, r"lies beyond the end of training.*coef\.unit"),
        ({"kind": "cosine", "end": 0.1, "begin": 0.6, "duration": 0.5}, r"lies beyond the end of training"),
        (
            {"kind": "step", "end": 0.1, "begin": -1.0},
            r"coef\.begin=-1\.0 and coef\.duration=0\.0 must be finite and not",
        ),
    ],
)
def test_coef_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        CoefSchedule(**fields)


def test_progress_refuses():
    with pytest.raises(ValueError, match=r"step=-1 and tokens=0 count what was done"):
        Progress(-1)
    with pytest.raises(ValueError, match=r"max_steps=0 must be at least 1"):
        Progress(0, 0)


# Which depths


def depths_over(window, num_depths, max_steps):
    return [list(active_depths(window, num_depths, Progress(step, max_steps))) for step in range(max_steps)]


def test_forward_curriculum_adds_a_head_every_quarter():
    # K = 4 in 8 steps: N/K = 2 steps with the next token alone, then one head more every 2.
    expected = [[], [], [2], [2], [2, 3], [2, 3], [2, 3, 4], [2, 3, 4]]
    assert depths_over(DepthWindow(curriculum="forward"), 4, 8) == expected


def test_reverse_curriculum_ends_with_the_next_token():
    expected = [[2, 3, 4], [2, 3, 4], [2, 3], [2, 3], [2], [2], [], []]
    assert depths_over(DepthWindow(curriculum="reverse"), 4, 8) == expected


def test_curriculum_over_a_part_of_training():
    # Three stages over steps 2 .. 4 of 10, of one step each.
    forward = DepthWindow(curriculum="forward", curriculum_begin=0.2, curriculum_end=0.5)
    assert depths_over(forward, 3, 10) == [[], [], [], [2], *[[2, 3]] * 6]
    reverse = DepthWindow(curriculum="reverse", curriculum_begin=0.2, curriculum_end=0.5)
    assert depths_over(reverse, 3, 10) == [[2, 3], [2, 3], [2, 3], [2], *[[]] * 6]


def test_curriculum_inside_a_window():
    window = DepthWindow(first=3, last=4, curriculum="forward")
    assert depths_over(window, 6, 6) == [[], [], [3], [3], [3, 4], [3, 4]]


@pytest.mark.parametrize("num_depths", range(1, 60))
def test_each_stage_of_one_step_begins_on_time(num_depths):
    # K stages in K steps. In floats, 1/49 * 49 is below one and depth 2 would come a step late.
    expected = [list(range(2, step + 2)) for step in range(num_depths)]
    assert depths_over(DepthWindow(curriculum="forward"), num_depths, num_depths) == expected


def test_the_last_stage_stays_past_the_end():
    late = Progress(12, 8)
    assert list(active_depths(DepthWindow(curriculum="forward"), 4, late)) == [2, 3, 4]
    assert list(active_depths(DepthWindow(curriculum="reverse"), 4, late)) == []


def test_window_alone():
    assert list(active_depths(DepthWindow(), 4, Progress(0))) == [2, 3, 4]
    assert list(active_depths(DepthWindow(first=3), 4, Progress(0))) == [3, 4]
    assert list(active_depths(DepthWindow(last=2), 4, Progress(0))) == [2]
    assert list(active_depths(DepthWindow(), 1, Progress(0))) == []


def test_windows_refuse():
    with pytest.raises(ValueError, match=r"window 2 \.\. 5 reaches beyond the model's 4 depths; narrow it"):
        active_depths(DepthWindow(last=5), 4, Progress(0))
    with pytest.raises(ValueError, match=r"window 5 \.\. 4 reaches beyond the model's 4 depths"):
        active_depths(DepthWindow(first=5), 4, Progress(0))
    with pytest.raises(ValueError, match=r"num_depths=0 must be at least 1"):
        active_depths(DepthWindow(), 0, Progress(0))
    with pytest.raises(ValueError, match=r"window\.curriculum='forward' needs to know how long training is"):
        active_depths(DepthWindow(curriculum="forward"), 4, Progress(0))
    with pytest.raises(ValueError, match=r"window\.first=1 must be at least 2; depth 1 is always trained"):
        DepthWindow(first=1)
    with pytest.raises(ValueError, match=r"window\.last=2 lies before window\.first=3"):
        DepthWindow(first=3, last=2)
    with pytest.raises(ValueError, match=r"window\.curriculum='forwards' is unknown; did you mean 'forward'\?"):
        DepthWindow(curriculum="forwards")
    with pytest.raises(ValueError, match=r"curriculum_begin=0\.5 and curriculum_end=0\.5 must be fractions"):
        DepthWindow(curriculum_begin=0.5, curriculum_end=0.5)


# Plans


def test_plan_of_all_depths():
    made = plan(weighting="medusa", coef=CoefSchedule(start=0.2))
    assert made.weights == pytest.approx([0.8, 0.64, 0.512])
    assert (made.coef, made.depths, made.is_active, made.position_scale) == (0.2, (2, 3, 4), True, 1.0)


def test_a_window_weighs_like_a_model_of_its_depth():
    for weighting in DEPTH_WEIGHTINGS:
        shallow = plan(weighting=weighting, num_depths=3).weights
        assert plan(weighting=weighting, num_depths=5, window=DepthWindow(last=3)).weights == (*shallow, 0.0, 0.0)


def test_a_curriculum_does_not_change_a_depths_weight():
    window = DepthWindow(curriculum="forward")
    weights = [plan(weighting="mean", window=window, step=step).weights for step in (0, 25, 50, 75)]
    third = pytest.approx(1 / 3)
    assert weights == [(0.0, 0.0, 0.0), (third, 0.0, 0.0), (third, third, 0.0), (third, third, third)]
    assert not plan(window=window, step=0).is_active


def test_term_exists_every_third_step():
    made = [plan(step=step, frequency=Frequency(every_steps=3)) for step in range(7)]
    assert [entry.is_active for entry in made] == [True, False, False, True, False, False, True]
    assert made[0].weights == (1.0, 1.0, 1.0)  # not made up for
    assert made[1].weights == (0.0, 0.0, 0.0)
    assert made[1].depths == ()


def test_no_term_without_lambda_or_depths():
    assert not plan(coef=CoefSchedule(start=0.0)).is_active
    alone = plan(num_depths=1)
    assert (alone.weights, alone.depths, alone.is_active) == ((), (), False)


def test_a_random_depth_is_unbiased():
    # By enumeration of the draws: each depth, drawn one time in three, has three times its weight, so that the mean
    # of the weights over the three draws is the weights themselves.
    drawn = {entry.depths: entry.weights for seed in range(60) for entry in [plan_with_random_depth(seed)]}
    assert sorted(drawn) == [(2,), (3,), (4,)]  # not all met: below 3 (2/3)^60 = 1e-10
    mean = [sum(column) / 3 for column in zip(*drawn.values(), strict=True)]
    assert mean == pytest.approx(list(plan(weighting="medusa").weights))
    assert all(sum(weight > 0 for weight in weights) == 1 for weights in drawn.values())


def test_random_depths_are_drawn_evenly():
    counts = {(2,): 0, (3,): 0, (4,): 0}
    for step in range(3000):
        counts[plan_with_random_depth(5, step).depths] += 1
    # Each count is binomial(3000, 1/3), standard deviation 25.8; five of them, on three counts: false alarm 2e-6.
    assert all(abs(count - 1000) < 130 for count in counts.values())


def plan_with_random_depth(seed, step=0):
    return plan(weighting="medusa", frequency=Frequency(one_random_depth=True), seed=seed, step=step, max_steps=10**4)


def test_a_random_depth_comes_from_the_curriculums_depths():
    window = DepthWindow(curriculum="forward")
    drawn = [
        plan(window=window, frequency=Frequency(one_random_depth=True), step=step, seed=seed)
        for seed in range(20)
        for step in (10, 30)
    ]
    assert {entry.depths for entry in drawn} == {(), (2,)}
    assert {entry.weights for entry in drawn} == {(0.0, 0.0, 0.0), (1.0, 0.0, 0.0)}


def test_a_resumed_run_draws_the_same():
    frequency = Frequency(one_random_depth=True, position_fraction=0.5)
    whole = [plan(step=step, frequency=frequency, seed=3) for step in range(20)]
    resumed = [plan(step=step, frequency=frequency, seed=3) for step in range(11, 20)]
    assert whole[11:] == resumed
    assert len({entry.position_seed for entry in whole}) == 20
    assert len({entry.depths for entry in whole}) == 3
    assert plan(step=4, frequency=frequency, seed=4) != whole[4]
    # Whether a depth is drawn or not; and pinned, for another draw would change every run that is resumed.
    assert plan(step=0, seed=3).position_seed == whole[0].position_seed == 5064383154529294397


def test_global_generators_are_left_alone(global_rng_untouched):
    made = plan(frequency=Frequency(one_random_depth=True, position_fraction=0.5, position_stride=2))
    with global_rng_untouched():  # not around the plan: the checker of annotations draws which items of a tuple it sees
        position_mask(made, torch.ones((2, 5, 3), dtype=torch.bool))


# Positions


def positions(seed, *, fraction=1.0, stride=1):
    return StepPlan(
        coef=1.0,
        weights=(1.0, 1.0),
        depths=(2, 3),
        position_fraction=fraction,
        position_stride=stride,
        position_seed=seed,
    )


def test_all_positions_are_the_mask_itself():
    mask = torch.ones((2, 3, 2), dtype=torch.bool)
    assert position_mask(positions(0), mask) is mask


def test_stride_is_unbiased():
    # By enumeration: a row has three phases, which split its positions between them, so the mean over phases of three
    # times what is kept is everything.
    mask = torch.ones((1, 7, 2), dtype=torch.bool)
    kept = {tuple(position_mask(positions(seed, stride=3), mask)[0, :, 0].tolist()) for seed in range(60)}
    phases = [tuple(t % 3 == phase for t in range(7)) for phase in range(3)]
    assert kept == set(phases)  # not all met: below 3 (2/3)^60 = 1e-10
    assert positions(0, stride=3).position_scale == 3.0


def test_rows_have_phases_of_their_own():
    kept = position_mask(positions(0, stride=2), torch.ones((64, 2, 1), dtype=torch.bool))[:, :, 0]
    assert kept.sum(dim=1).tolist() == [1] * 64
    assert 0 < int(kept[:, 0].sum()) < 64  # all in one phase: 2 / 2^64


@pytest.mark.parametrize(("fraction", "stride", "scale"), [(0.25, 1, 4.0), (0.5, 3, 6.0), (1.0, 5, 5.0)])
def test_kept_positions_make_up_for_the_others(fraction, stride, scale):
    # Values of one: the scaled sum over what is kept estimates the number of positions, 400 rows of 60.
    mask = torch.ones((400, 60, 2), dtype=torch.bool)
    made = positions(11, fraction=fraction, stride=stride)
    assert made.position_scale == scale
    kept = position_mask(made, mask)[:, :, 0]
    # 60 is a multiple of each stride, so a row has 60 / stride candidates, each kept with probability `fraction`.
    candidates = 400 * 60 // stride
    deviation = math.sqrt(candidates * fraction * (1 - fraction))
    bound = NormalDist().inv_cdf(1 - 0.5e-6) * deviation  # false alarm 1e-6; exact where nothing is random
    assert abs(int(kept.sum()) - candidates * fraction) <= bound


def test_each_position_is_kept_with_the_same_probability():
    mask = torch.ones((8000, 6, 1), dtype=torch.bool)
    per_position = position_mask(positions(2, fraction=0.5, stride=2), mask)[:, :, 0].sum(dim=0)
    # Binomial(8000, 1/4), deviation 38.7: six deviations on six counts, false alarm 2e-8.
    assert (per_position - 2000).abs().max() < 233


def test_depths_share_positions_and_the_mask_is_kept():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand((4, 30, 3), generator=generator) < 0.7
    made = positions(1, fraction=0.5)
    kept, everywhere = position_mask(made, mask), position_mask(made, torch.ones_like(mask))
    assert torch.equal(kept, mask & everywhere)
    assert torch.equal(everywhere, everywhere[:, :, :1].expand_as(everywhere))
    assert torch.equal(position_mask(made, mask), kept)
    assert not torch.equal(position_mask(positions(2, fraction=0.5), mask), kept)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"every_steps": 0}, r"frequency\.every_steps=0 and position_stride=1 must be at least 1"),
        ({"position_stride": 0}, r"frequency\.every_steps=1 and position_stride=0 must be at least 1"),
        ({"position_fraction": 0.0}, r"frequency\.position_fraction=0\.0 must lie in \(0, 1\]"),
        ({"position_fraction": 1.5}, r"frequency\.position_fraction=1\.5 must lie in \(0, 1\]"),
    ],
)
def test_frequency_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        Frequency(**fields)
