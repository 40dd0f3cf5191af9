"""The verdict table: what passes, what fails, and what says that it was not measured."""

from dataclasses import replace

import numpy as np
import pytest

from worldmtp.analysis.run_files import Series
from worldmtp.analysis.verdicts import NOT_MEASURED, decide, verdicts


def logged(depth, middle, low, high):
    values = {"": middle, "_lo90": low, "_hi90": high}
    # The last value counts.
    return {
        f"world_model/depth_{depth}/error{end}": Series(np.array([0.0, 1.0]), np.array([9.0, value]))
        for end, value in values.items()
    }


def outcomes(artefact, series):
    return [verdict.outcome for verdict in verdicts(artefact, series)]


@pytest.mark.parametrize(
    ("interval", "expected"),
    [((0.0, 0.04), "pass"), ((0.06, 0.2), "fail"), ((0.0, 0.2), "undetermined"), ((-0.3, -0.1), "pass")],
)
def test_an_interval_decides_by_its_whole_length(interval, expected):
    assert decide(*interval, 0.05) == expected


def test_a_run_without_imagination_says_so(make_artefact, marginal_heads):
    artefact = make_artefact(marginal_heads)
    assert outcomes(artefact, {}) == [NOT_MEASURED, "pass", NOT_MEASURED, NOT_MEASURED]
    assert all(verdict.sentence for verdict in verdicts(artefact, {}))


def test_errors_are_read_from_the_log_at_the_deepest_depth(make_artefact, marginal_heads):
    artefact = make_artefact(marginal_heads)
    found = verdicts(artefact, logged(2, 0.2, 0.1, 0.3) | logged(3, 0.01, 0.0, 0.02))[0]
    assert (found.number, found.outcome) == ("depth 3: 0.010 [0.000, 0.020] nats", "pass")
    assert outcomes(artefact, logged(2, 0.2, 0.1, 0.3))[0] == "fail"
    assert outcomes(artefact, logged(2, 0.1, 0.0, 0.3))[0] == "undetermined"


def test_heads_that_see_and_forget_are_incoherent(make_artefact, marginal_heads):
    wrong = np.array([[0.1, 0.9], [0.1, 0.9]])
    assert outcomes(make_artefact([marginal_heads[0], wrong, marginal_heads[2]]), {})[1] == "fail"


def test_returns_of_the_law_pass_and_those_of_another_world_fail(make_artefact, marginal_heads):
    """Reward: the last token is 1. Roots 0..2 imagine it by A^3, A^2 and A."""
    artefact = make_artefact(marginal_heads)
    imagined, realized = artefact.imagined_return.copy(), artefact.realized_return.copy()
    for root, k in enumerate([3, 2, 1]):
        imagined[:, root] = marginal_heads[k - 1][artefact.input_ids[:, root], 1]
        realized[:, root] = artefact.input_ids[:, 3]
    right = replace(artefact, imagined_return=imagined, realized_return=realized)
    assert outcomes(right, {})[2:] in (["pass", "undetermined"], ["undetermined", "undetermined"])
    above = replace(right, imagined_return=imagined + 0.6)
    assert outcomes(above, {})[2:] == ["fail", "fail"]
    below = replace(right, imagined_return=imagined - 0.6)
    assert outcomes(below, {})[2:] == ["fail", "pass"]
