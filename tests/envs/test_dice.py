"""The law of the dice, values worked by hand, and the optimal policy at play."""

import math

import numpy as np
import pytest

from worldmtp.envs.worlds.dice import Pig, optimal_decision, optimal_value

NUM_ROLLS = 12_000


def fixed(target, decisions):
    return Pig(target, target, decisions, decisions)


def rolled(world, seed, text):
    world.reset(seed)
    return world.step(text)


def seed_with(world, dice):
    """A seed whose dice begin so."""
    for seed in range(100_000):
        world.reset(seed)
        if [world.step("r")[0] for _ in dice] == list(dice):
            return seed
    raise AssertionError(f"no seed rolls {dice}")


def test_values_by_hand():
    assert optimal_value(6, 1) == 0.0  # nothing rolled can be banked
    # Roll and hold, target 6: (0 + 2 + 3 + 4 + 5 + 6) / 6 / 6.
    assert optimal_value(6, 2) == pytest.approx(20 / 36, abs=1e-15)
    assert optimal_value(2, 2) == pytest.approx(5 / 6, abs=1e-15)
    # Three decisions, target 6, by the first die: 1 -> 20/36 as above; 2..5 -> roll on, then hold what is there;
    # 2: (4 + 5 + 6 + 6 + 6) / 36, 3: (5 + 6 * 4) / 36, 4 and 5: 30 / 36; 6 -> hold, 1.
    assert optimal_value(6, 3) == pytest.approx((20 + 27 + 29 + 30 + 30 + 36) / 216, abs=1e-15)


def test_decisions_by_hand():
    assert optimal_decision(6, 0, 6, 2) == "h"
    assert optimal_decision(6, 0, 2, 2) == "r"  # 27 / 36 against 2 / 6
    assert optimal_decision(6, 0, 2, 1) == "h"  # the last chance to bank
    assert optimal_decision(6, 0, 5, 2) == "h"  # 30 / 36 both: held


def play(world, seed):
    """The return of the optimal policy, which keeps count from replies alone."""
    opening, _ = world.reset(seed)
    target, decisions = (int(part) for part in opening.removesuffix(":").split("/"))
    banked = at_risk = 0
    total, is_over = 0.0, False
    while not is_over:
        decision = optimal_decision(target, banked, at_risk, decisions)
        reply, reward, is_over, truncated, _ = world.step(decision)
        assert not truncated
        if decision == "h":
            banked, at_risk = int(reply), 0
        else:
            at_risk = 0 if reply == "1" else at_risk + int(reply)
        decisions -= 1
        total += reward
    return total


@pytest.mark.parametrize(("target", "decisions"), [(8, 4), (14, 7), (20, 10)])
def test_optimal_play_earns_the_optimal_value(target, decisions):
    """Returns lie in [0, 1]. False alarm by Hoeffding: 2 exp(-2 * 1200 * 0.08**2) = 4.3e-7 for each of the three."""
    world = fixed(target, decisions)
    mean = np.mean([play(world, seed) for seed in range(1200)])
    assert abs(mean - optimal_value(target, decisions)) < 0.08


def face_error(dice):
    """The largest distance of a frequency from 1/6, and how likely one above 0.025 is with fair dice."""
    counts = np.bincount(dice, minlength=7)[1:]
    assert len(counts) == 6
    return np.abs(counts / len(dice) - 1 / 6).max(), 6 * 2 * math.exp(-2 * len(dice) * 0.025**2)


def test_dice_are_uniform_in_an_episode_and_over_seeds():
    """False alarm by Hoeffding and the union bound over faces: 12 exp(-2 * 12000 * 0.025**2) = 3.7e-6 for each."""
    world = fixed(8, 4)
    world.reset(0)
    world.decisions = NUM_ROLLS + 1  # a clock that long has a value that nobody needs to compute
    in_episode = np.array([int(world.step("r")[0]) for _ in range(NUM_ROLLS)])
    over_seeds = np.array([int(rolled(world, seed, "r")[0]) for seed in range(NUM_ROLLS)])
    for dice in (in_episode, over_seeds):
        error, false_alarm = face_error(dice)
        assert error < 0.025
        assert false_alarm < 4e-6


def test_loaded_dice_would_be_caught():
    loaded = np.random.default_rng(0).integers(1, 6, size=NUM_ROLLS)  # a die without a six
    assert face_error(loaded)[0] > 0.025
    slightly = np.random.default_rng(0).choice(6, size=NUM_ROLLS, p=[0.2] + [0.16] * 5) + 1
    assert face_error(slightly)[0] > 0.025


def test_an_episode_by_hand():
    world = fixed(12, 8)
    seed = seed_with(world, "541")
    assert world.reset(seed)[0] == "12/8:"
    said = [world.step(text) for text in ("r", "h", "r", "roll", " r ", "h", "h")]
    assert [step[0] for step in said] == ["5", "5", "4", "?", "1", "5", "5"]
    assert [step[1] for step in said] == [0.0, 5 / 12, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert not any(step[2] or step[3] for step in said)
    assert world.step("h")[1:4] == (0.0, True, False)  # the clock


def test_the_dice_of_a_seed_do_not_depend_on_the_turns():
    world = fixed(20, 10)
    seed = seed_with(world, "35")
    world.reset(seed)
    assert [world.step(text)[0] for text in ("h", "r", "zz", "h", "r")] == ["0", "3", "?", "3", "5"]


def test_a_won_game_ends_and_pays_exactly_one():
    world = fixed(11, 10)  # thirds of elevenths do not add up in floating point by themselves
    for seed in range(200):
        world.reset(seed)
        total, is_over = 0.0, False
        while not is_over:
            for text in ("r", "h"):
                _, reward, is_over, _, info = world.step(text)
                total += reward
                if is_over:
                    break
        assert (total == 1.0) == info["is_success"]
        assert 0.0 <= total <= 1.0


def test_impossible_arguments():
    with pytest.raises(ValueError, match="expected 1 <= min_target <= max_target"):
        Pig(5, 4)
    with pytest.raises(ValueError, match=r"2 <= min_decisions"):
        Pig(min_decisions=1)


def test_games_whose_value_would_take_for_ever_are_refused():
    with pytest.raises(ValueError, match=r"max_target=20 and max_decisions=600 must be at most 100"):
        Pig(20, 20, 600, 600)
