"""Switches by hand, and what the best player earns against expectimax over all that can still be the order."""

import itertools
from fractions import Fraction
from functools import cache

import pytest

from worldmtp.envs.worlds.players import play
from worldmtp.envs.worlds.switches import Switches, expected_turns


def test_an_episode_by_hand():
    world = Switches(order="bacd")
    assert world.reset(0) == ("0", {"optimal_value": pytest.approx(1 - 0.5 * 4 / 20)})
    said = ["b", "c", "b", " a ", "a", "b", "a", "z", "ab", "", "c"]
    #  "c" is too early, "a" cannot be pressed twice; what is no switch leaves them as they are.
    assert [world.step(text)[0] for text in said] == ["1", "0", "1", "2", "0", "1", "2", "?", "?", "?", "3"]
    reply, reward, terminated, truncated, info = world.step("d")
    assert (reply, terminated, truncated, info["is_success"]) == ("4", True, False, True)
    assert reward == pytest.approx(1 - 0.5 * 12 / 20)


def test_a_wrong_switch_does_not_begin_anew_by_itself():
    world = Switches(2, 3, "ab")
    world.reset(0)
    assert [world.step(letter)[0] for letter in "aa"] == ["1", "0"]
    assert world.step("b")[:4] == ("0", 0.0, False, True)


def test_the_order_is_each_episodes_own_and_not_told():
    world = Switches(3)
    openings = [(*world.reset(seed), world.order) for seed in range(200)]
    assert {order for *_, order in openings} == {"".join(order) for order in itertools.permutations("abc")}
    told = {"optimal_value": pytest.approx(1 - 0.5 * 5 / 20)}  # who has three needs 5 turns on average
    assert all(opening[:2] == ("0", told) for opening in openings)
    again = Switches(3)
    again.reset(7)
    assert again.order == openings[7][2]


def fewest_turns(letters):
    """The expected turns of the best policy: expectimax over the orders that fit what was seen, and how many are on."""

    @cache
    def go(orders, num_on, limit):
        if limit == 0:
            return Fraction(1000)  # no policy that stops here is the best
        best = Fraction(1000)
        for letter in letters:
            right = tuple(order for order in orders if order[num_on] == letter)
            wrong = tuple(order for order in orders if order[num_on] != letter)
            turns = Fraction(1)
            if right and num_on + 1 < len(letters):
                turns += Fraction(len(right), len(orders)) * go(right, num_on + 1, limit - 1)
            if wrong:
                turns += Fraction(len(wrong), len(orders)) * go(wrong, 0, limit - 1)
            best = min(best, turns)
        return best

    return go(tuple(itertools.permutations(letters)), 0, 8 if len(letters) == 3 else 4)


@pytest.mark.parametrize("num_switches", [2, 3])
def test_the_best_player_is_the_best_policy(num_switches):
    letters = "abc"[:num_switches]
    orders = ["".join(order) for order in itertools.permutations(letters)]
    turns = []
    for order in orders:
        world = Switches(num_switches)
        seed = next(seed for seed in range(1000) if world.reset(seed) and world.order == order)
        episode = play(world, seed, world.player())
        assert episode.total == pytest.approx(world.worth(len(episode.said)))
        turns.append(len(episode.said))
    mean = Fraction(sum(turns), len(turns))
    assert mean == fewest_turns(letters) == Fraction(expected_turns(num_switches))
    # By hand. Two: "a" is first, or it is not: 2 or 3 turns. Three: orders abc acb bac bca cab cba.
    assert turns == {2: [2, 3], 3: [3, 5, 4, 6, 5, 7]}[num_switches]


def test_who_knows_a_fixed_order_needs_no_trial():
    world = Switches(order="dbca")
    episode = play(world, 0, world.player())
    assert (episode.said, episode.total) == (tuple("dbca"), pytest.approx(0.9))
    assert world.reset(0)[1]["optimal_value"] == pytest.approx(0.9)


def test_four_switches_are_worth_what_the_catalogue_says():
    assert expected_turns(4) == 9  # 4 + 3/2 + 2 * 2/2 + 3 * 1/2
    assert Switches().reset(0)[1]["optimal_value"] == pytest.approx(0.775)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_switches": 1}, "num_switches=1 must be 2 to 8"),
        ({"num_switches": 9}, "num_switches=9 must be 2 to 8"),
        ({"order": "abc"}, "order='abc' must have each of a, b, c, d once, or be None"),
        ({"order": "aabc"}, "order='aabc' must have each of"),
        ({"max_turns": 13}, "max_turns=13 must be at least 14, what the best player may need"),
    ],
)
def test_worlds_that_are_none(settings, message):
    with pytest.raises(ValueError, match=message):
        Switches(**settings)
