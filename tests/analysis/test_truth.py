"""What heads say beside a known law: a perfect head of either kind has no error, and each planted fault is seen."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from worldmtp.analysis import ArtefactError, write_report
from worldmtp.analysis.run_files import read_run
from worldmtp.analysis.truth import TRUTH_DIRECTORY, load_truth, save_truth, truth_of
from worldmtp.analysis.verdicts import beside_truth
from worldmtp.exact import mess3

TEXTS, ROOTS, DEPTH, FIRST = 400, 3, 3, 6


@pytest.fixture(scope="module")
def law():
    """Exact law, marginals, noise and gap at three roots of texts of Mess3."""
    source = mess3()
    tokens, _ = source.sample(TEXTS, FIRST + ROOTS + DEPTH, torch.Generator().manual_seed(0))
    beliefs = source.beliefs(tokens)
    at = beliefs[:, FIRST : FIRST + ROOTS]
    split = source.true_split(at, DEPTH)
    exact = torch.stack([source.next_token(beliefs[:, FIRST + k : FIRST + k + ROOTS]) for k in range(DEPTH)], dim=2)
    return [part.numpy() for part in (exact, source.marginals(at, DEPTH), split.noise, split.structural)]


def read(law, predicted, told):
    exact, marginals, noise, structural = law
    missed, spread = np.tile([0.2, 1.5], (TEXTS // 2, 1)), np.full(TEXTS // 2, 2.0)
    return truth_of(predicted, exact, marginals, noise, structural, told, missed, spread)


def test_a_perfect_head_that_is_told_has_no_error_at_any_root(law):
    truth = read(law, law[0], told=True)
    assert np.allclose(truth.loss, truth.noise)
    assert np.allclose(truth.accept, 1)
    assert np.allclose(truth.accept_exact, 1)
    assert [truth.interval("error", k).estimate for k in (1, 2, 3)] == pytest.approx([0, 0, 0], abs=1e-12)


def test_a_perfect_head_that_averages_has_no_error_and_is_short_of_one_that_is_told_by_the_gap(law):
    truth, held_to_more = read(law, law[1], told=False), read(law, law[1], told=True)
    assert np.array_equal(truth.accept, truth.accept_exact)
    assert np.allclose(truth.loss, truth.noise + truth.structural)
    for depth in (2, 3):
        assert truth.interval("error", depth).estimate == pytest.approx(0, abs=1e-12)
        short, gap = held_to_more.interval("error", depth), truth.interval("structural", depth).estimate
        assert gap > 0.005
        assert short.low <= gap <= short.high


def test_what_a_head_holds_to_be_impossible_counts_and_is_not_left_out():
    """Two texts of four lose half of ln 1 and half of -ln tiny = 708.4, the others ln 2, which is all noise."""
    fair, noise = np.full((4, 1, 1, 2), 0.5), np.full((4, 1, 1), np.log(2))
    said = np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.5, 0.5]]).reshape(fair.shape)
    truth = truth_of(said, fair, fair, noise, np.zeros_like(noise), True, np.ones((2, 2)), np.ones(2))
    assert truth.interval("error", 1).estimate == pytest.approx((354.198 - 0.693) / 2, abs=0.01)
    assert truth.scalars()["truth/depth_1/loss"] == pytest.approx((354.198 + 0.693) / 2, abs=0.01)


@pytest.mark.parametrize("fault", ["sharpened", "shifted", "leaking"])
def test_a_planted_fault_is_an_error(law, fault):
    exact, marginals = law[:2]
    sharpened = marginals**2 / (marginals**2).sum(axis=-1, keepdims=True)
    said = {"sharpened": sharpened, "shifted": np.roll(marginals, 1, axis=2), "leaking": exact}[fault]
    truth = read(law, said, told=False)
    error = truth.interval("error", 2)
    assert error.high < 0 if fault == "leaking" else error.low > 0


def test_the_loss_by_hand():
    """One text, one root, two tokens of laws 3/4 and 1/4; the head gives them half of what is left by padding."""
    law = np.array([0.75, 0.25])[None, None, None]
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    parts = np.full((1, 1, 1), entropy), np.zeros((1, 1, 1))
    truth = truth_of(np.full((1, 1, 1, 2), 0.4), law, law, *parts, True, np.ones((1, 2)), np.ones(1))
    assert truth.loss.item() == pytest.approx(-np.log(0.4))
    assert truth.accept.item() == pytest.approx(0.4 + 0.25)
    assert truth.accept_exact.item() == pytest.approx(1)


def test_what_lies_behind_the_end_is_not_counted(law):
    cut = [part.copy() for part in law]
    for part in cut:
        part[:, 1:, 2] = np.nan
    truth = read(cut, cut[0], told=True)
    assert np.isnan(truth.loss[:, 1:, 2]).all()
    assert np.isnan(truth.accept[:, 1:, 2]).all()
    assert truth.interval("noise", 3).estimate == pytest.approx(law[2][:, 0, 2].mean())


def test_beliefs_and_scalars(law):
    truth = read(law, law[0], told=True)
    # 1 - .2 / 2 and 1 - 1.5 / 2.
    assert truth.belief_r2(0).estimate == pytest.approx(0.9)
    assert truth.belief_r2(1).estimate == pytest.approx(0.25)
    found = truth.scalars()
    assert (found["truth/belief_r2"], found["truth/belief_r2_last_token"]) == pytest.approx((0.9, 0.25))
    assert found["truth/depth_2/noise"] == pytest.approx(law[2][:, :, 1].mean())
    assert found["truth/depth_3/error_lo90"] <= found["truth/depth_3/error"] <= found["truth/depth_3/error_hi90"]
    still = replace(truth, belief_spread=np.zeros(TEXTS // 2))
    assert still.belief_r2(0) is None
    assert "truth/belief_r2" not in still.scalars()


def test_the_verdict_is_of_the_first_evaluation_and_tells_the_last(law):
    good, bad = read(law, law[0], told=True), read(law, np.full_like(law[0], 1 / 3), told=True)
    found = beside_truth({"warm_start": good, "final": bad})
    assert (found.outcome, found.interval.estimate) == ("pass", pytest.approx(0, abs=1e-12))
    assert f"{bad.interval('error', 3)} at the end" in found.sentence
    assert beside_truth({"warm_start": bad, "final": good}).outcome == "fail"


@pytest.mark.usefixtures("quick_report")
def test_the_report_shows_the_truth_where_there_is_one(law, tmp_path):
    (tmp_path / "without").mkdir()
    assert "Beside the truth" not in write_report(tmp_path / "without").read_text(encoding="utf-8")
    truth = read(law, law[0], told=True)
    save_truth(truth, tmp_path, "final")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Beside the truth" in page
    assert "told the tokens in between" in page
    assert f"<td>{law[2][:, :, 1].mean():.3f}</td>" in page  # the noise of depth 2
    rows = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["numbers"]
    found = {(row["quantity"], row["depth"]): row["estimate"] for row in rows}
    assert found["truth/structural", 3] == pytest.approx(law[3][:, :, 2].mean())
    assert found["truth/belief_r2", None] == pytest.approx(0.9)


def test_it_is_read_back_and_damage_is_named(law, tmp_path):
    truth = read(law, law[0], told=True)
    save_truth(truth, tmp_path, "final")
    save_truth(truth, tmp_path, "another")
    again = load_truth(tmp_path / TRUTH_DIRECTORY / "final.npz")
    assert np.array_equal(again.loss, truth.loss)
    assert again.told
    (tmp_path / TRUTH_DIRECTORY / "final.npz").write_bytes(b"PK")
    with pytest.raises(ArtefactError, match="run the evaluation again"):
        load_truth(tmp_path / TRUTH_DIRECTORY / "final.npz")
    np.savez(tmp_path / TRUTH_DIRECTORY / "later.npz", format_version=np.array(2))
    run = read_run(tmp_path)
    assert list(run.truths) == ["another"]
    assert sum("The truth beside an evaluation" in problem for problem in run.problems) == 2
