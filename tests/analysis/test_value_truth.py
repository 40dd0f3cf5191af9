"""Imagined returns beside exact values: the right imagination is right at each state, and the draws are not."""

from dataclasses import replace

import numpy as np
import pytest

from worldmtp.analysis import save_artefact, write_report
from worldmtp.analysis.run_files import read_run
from worldmtp.analysis.truth import TRUTH_DIRECTORY
from worldmtp.analysis.value_truth import ExactValues, save_values

TRUNK = np.array([[0.75, 0.25], [0.5, 0.5]])


@pytest.fixture
def world(make_artefact):
    """The return is the last token x3, so a state is worth P(x3 = 1): by A^3 after x0, A^2 after x1, A after x2."""
    artefact = make_artefact([TRUNK])
    paths = artefact.input_ids
    values, realized = np.full(paths.shape, np.nan), np.full(paths.shape, np.nan)
    for place in range(3):
        values[:, place] = np.linalg.matrix_power(TRUNK, 3 - place)[paths[:, place], 1]
        realized[:, place] = paths[:, 3]
    return replace(artefact, realized_return=realized, imagined_return=values + 0.1), ExactValues(values, 1e-4)


def test_an_imagination_that_is_off_by_a_tenth_is_off_by_a_tenth_everywhere(world):
    artefact, exact = world
    found = exact.agreement(artefact)
    assert found.bias.estimate == pytest.approx(0.1)
    assert (found.bias.low, found.bias.high) == pytest.approx((0.1, 0.1))
    assert found.pearson.estimate == pytest.approx(1)
    drawn = exact.of_draws(artefact)
    # The paths are as frequent as they are probable, so that draws have no bias; and a draw hides its value.
    assert drawn.bias.estimate == pytest.approx(0, abs=1e-12)
    assert drawn.slope.estimate == pytest.approx(1)
    known = np.isfinite(exact.values)
    ceiling = exact.values[known].std() / artefact.realized_return[known].std()
    assert drawn.pearson.estimate == pytest.approx(ceiling)
    scalars = exact.scalars(artefact)
    assert scalars["truth/value_bias"] == pytest.approx(0.1)
    assert scalars["truth/value_corr"] == pytest.approx(1)
    assert scalars["truth/value_ceiling"] == pytest.approx(ceiling)
    assert scalars["truth/value_missing"] == 1e-4


def test_values_of_the_first_answers_alone(world):
    artefact, exact = world
    few = ExactValues(exact.values[:40], 0.0)
    assert few.agreement(artefact).num_sequences == 40
    assert few.agreement(artefact).bias.estimate == pytest.approx(0.1)
    with pytest.raises(ValueError, match="give those of one evaluation"):
        ExactValues(exact.values[:, :2], 0.0).agreement(artefact)
    with pytest.raises(ValueError, match="missing=2"):
        ExactValues(exact.values, 2.0)


@pytest.mark.usefixtures("quick_report")
def test_the_report_shows_them(world, tmp_path):
    artefact, exact = world
    save_artefact(artefact, tmp_path / "artefacts", "final")
    assert "beside exact values" not in write_report(tmp_path).read_text(encoding="utf-8")
    save_values(exact, tmp_path, "final")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Imagined returns beside exact values" in page
    assert "0.100 [0.100, 0.100]" in page
    run = read_run(tmp_path)
    assert np.array_equal(run.exact_values["final"].values, exact.values, equal_nan=True)
    assert run.truths == {}
    (tmp_path / TRUTH_DIRECTORY / "values_final.npz").write_bytes(b"PK")
    assert any("Exact values cannot be read" in problem for problem in read_run(tmp_path).problems)
