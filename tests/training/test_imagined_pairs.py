"""Which imagined episodes are shown beside real ones."""

import numpy as np

from worldmtp.training.imagined_episodes import _ranks


def scores(*rows):
    return np.array([(value, turns, 1.0) for value, turns in rows])


def test_rows_are_those_of_lowest_middle_and_highest_return():
    real = scores((0.5, 4), (1.0, 2), (0.0, 9))
    assert _ranks(real, real) == {2: "lowest real return", 0: "middle real return", 1: "highest real return"}


def test_equal_returns_are_told_apart_by_their_turns():
    """Turns differ by 0, 5 and 1: the outlier is shown, and none is called the lowest of equal ones."""
    real, imagined = scores((1.0, 6), (1.0, 6), (1.0, 6)), scores((1.0, 6), (0.3, 1), (1.0, 7))
    assert _ranks(real, imagined) == {
        0: "most alike in turns, of equal real returns",
        2: "in the middle, of equal real returns",
        1: "least alike in turns, of equal real returns",
    }


def test_one_episode_is_shown_once():
    assert list(_ranks(scores((1.0, 6)), scores((1.0, 6)))) == [0]
