"""Bisection, the value of late hits, and guesses that are none."""

import numpy as np
import pytest

from worldmtp.envs.worlds.guess_number import GuessNumber, optimal_turns


def bisect(world):
    low, high, rewards = world.low, world.high, []
    for _ in range(100):
        guess = (low + high) // 2
        reply, reward, terminated, _, _ = world.step(str(guess))
        rewards.append(reward)
        if terminated:
            return rewards
        low, high = (guess + 1, high) if reply == ">" else (low, guess - 1)
    raise AssertionError("bisection must end")


@pytest.mark.parametrize(
    ("size", "turns"), [(1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4), (15, 4), (16, 5), (31, 5), (32, 6)]
)
def test_optimal_turns(size, turns):
    assert optimal_turns(size) == turns


@pytest.mark.parametrize("size", [2, 3, 4, 7, 8, 15])
def test_no_player_is_better_at_worst_and_bisection_is_as_good(size):
    # worst(n): guesses needed at worst among n numbers, by trying every first guess.
    worst = [0]
    for numbers in range(1, size + 1):
        worst.append(1 + min(max(worst[below], worst[numbers - 1 - below]) for below in range(numbers)))
    assert optimal_turns(size) == worst[size]
    world = GuessNumber(max_number=20, min_size=size, max_size=size)
    taken = []
    for seed in range(120):
        world.reset(seed)
        rewards = bisect(world)
        assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
        taken.append(len(rewards))
    assert max(taken) == worst[size]


def test_an_episode_by_hand():
    world = GuessNumber(max_number=3, min_size=4, max_size=4)
    seed = next(seed for seed in range(50) if world.reset(seed)[1]["hidden"] == "2")
    assert world.reset(seed)[0] == "0-3:"
    assert world.optimal_turns == 3
    assert world.step("0")[:4] == (">", 0.0, False, False)
    assert world.step(" 3 ")[:4] == ("<", 0.0, False, False)
    assert world.step("x")[:4] == ("?", 0.0, False, False)
    assert world.step("1")[:4] == (">", 0.0, False, False)
    reply, reward, terminated, truncated, info = world.step("2")  # the fifth, 3 allowed: (2 * 3 + 1 - 5) / (3 + 1)
    assert (reply, reward, terminated, truncated, info["is_success"]) == ("=", 0.5, True, False, True)


def test_after_twice_the_turns_the_game_is_lost():
    world = GuessNumber(max_number=3, min_size=4, max_size=4)
    world.reset(0)
    ends = [world.step("zz")[1:4] for _ in range(6)]
    assert ends == [(0.0, False, False)] * 5 + [(0.0, True, False)]
    world.reset(0)
    for _ in range(5):
        world.step("")
    assert world.step(str(world.number))[:3] == ("=", 0.25, True)  # (7 - 6) / 4


@pytest.mark.parametrize("text", ["", "zz", "-1", "01", "1" * 5000, "\u0661", "1.0", "0x1", "4", "1 2"])
def test_what_is_no_number_of_the_range_is_malformed(text):
    world = GuessNumber(max_number=3, min_size=4, max_size=4)
    world.reset(0)
    assert world.step(text)[0] == "?"


def test_ranges_and_numbers_vary_and_fit():
    world = GuessNumber()
    prompts, numbers = set(), set()
    for seed in range(2000):
        prompt, info = world.reset(seed)
        low, high = (int(bound) for bound in prompt.removesuffix(":").split("-"))
        assert 0 <= low <= int(info["hidden"]) <= high <= 99
        assert 4 <= high - low + 1 <= 15
        prompts.add(prompt)
        numbers.add(info["hidden"])
    assert len(prompts) > 700
    assert len(numbers) == 100


def test_other_replies():
    world = GuessNumber(max_number=1, min_size=2, max_size=2, replies=("higher", "lower", "yes", "what?"))
    world.reset(0)
    assert world.step("hm")[0] == "what?"
    assert world.step(str(1 - world.number))[0] == ("higher" if world.number == 1 else "lower")
    assert world.step(str(world.number))[0] == "yes"


def test_impossible_arguments():
    with pytest.raises(ValueError, match=r"expected 2 <= min_size <= max_size <= max_number \+ 1"):
        GuessNumber(max_number=3, min_size=4, max_size=5)
    with pytest.raises(ValueError, match="four different texts"):
        GuessNumber(replies=("a", "a", "b", "c"))
    with pytest.raises(ValueError, match="size=0 must be at least 1"):
        optimal_turns(0)


def test_the_stated_bound_of_constant_guesses():
    # A constant guess c hits at once or never. Of the 101 - size ranges of a size at most `size` contain c, and each
    # hides it with probability 1 / size: P(hit) <= E[1 / (101 - size)], with size uniform on 4..15.
    assert np.mean([1 / (101 - size) for size in range(4, 16)]) < 0.02
    assert sum(size * (101 - size) for size in range(4, 16)) == 10288
