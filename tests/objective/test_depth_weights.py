"""Weights of the depths, by hand and as papers print them."""

from fractions import Fraction

import pytest

from worldmtp.objective.plan import DEPTH_WEIGHTINGS, depth_weights


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean", [Fraction(1, 3)] * 3),
        ("uniform", [Fraction(1)] * 3),
        ("harmonic", [Fraction(1, 2), Fraction(1, 3), Fraction(1, 4)]),
        ("medusa", [Fraction(4, 5), Fraction(16, 25), Fraction(64, 125)]),
        # 1, 3/5, 9/25 over their sum 49/25
        ("fastmtp", [Fraction(25, 49), Fraction(15, 49), Fraction(9, 49)]),
    ],
)
def test_depth_weights_by_hand(name, expected):
    assert depth_weights(name, 3) == pytest.approx([float(weight) for weight in expected], rel=1e-14)


def test_fastmtp_weights_are_those_printed_in_the_paper():
    assert [round(weight, 2) for weight in depth_weights("fastmtp", 3)] == [0.51, 0.31, 0.18]


def test_weights_from_a_later_depth_on():
    assert depth_weights("mean", 2, first=3) == (0.5, 0.5)
    assert depth_weights("harmonic", 2, first=3) == pytest.approx([1 / 3, 1 / 4])
    assert depth_weights("medusa", 2, first=3) == pytest.approx([0.64, 0.512])
    # 0.6, 0.36 over 0.96
    assert depth_weights("fastmtp", 2, first=3) == pytest.approx([0.625, 0.375])


@pytest.mark.parametrize("name", DEPTH_WEIGHTINGS)
def test_no_additional_depth_has_no_weights(name):
    assert depth_weights(name, 0) == ()


def test_depth_weights_refuse():
    with pytest.raises(ValueError, match=r"depth_weighting='medussa' is unknown; did you mean 'medusa'\? choose from"):
        depth_weights("medussa", 2)
    with pytest.raises(ValueError, match=r"num_additional_depths=-1 must be at least 0"):
        depth_weights("mean", -1)
    with pytest.raises(ValueError, match=r"first=1 must be at least 2; depth 1 is the trunk's own loss"):
        depth_weights("mean", 2, first=1)
