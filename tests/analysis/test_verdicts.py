"""Verdicts and the tables beside the report, by hand on the exact Markov world."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from worldmtp.analysis import save_artefact, verdicts, write_report
from worldmtp.analysis.metrics import rooted_predictions
from worldmtp.analysis.run_files import Series, read_run
from worldmtp.analysis.summary import ArmSummary, RunSummary, write_summary
from worldmtp.statistics import wilson_interval

TRUNK = np.array([[0.75, 0.25], [0.5, 0.5]])


@pytest.fixture
def knows_all(make_artefact):
    """Depth 2 has seen the token between and states the trunk's own law."""
    return make_artefact([TRUNK, None])


def test_adequacy_is_what_a_head_knows_beyond_frequencies(knows_all):
    sure = knows_all.head_logprob.copy()
    sure[:, 2:, 1] = math.log(0.95)
    artefact = replace(knows_all, head_logprob=sure)
    found = verdicts.adequacy(artefact, rooted_predictions(artefact))
    # P(1) is 3/8, 11/32, 43/128 of x1, x2, x3; depth 2 speaks of x2 and x3.
    overall = (0.375 + 0.34375 + 0.3359375) / 3
    spoken_of = (0.34375 + 0.3359375) / 2
    surprise = -spoken_of * math.log(overall) - (1 - spoken_of) * math.log(1 - overall)
    assert found.outcome == "pass"
    assert found.interval.estimate == pytest.approx(surprise + math.log(0.95))
    assert (found.interval.n, found.interval.unit) == (128, "sequence")
    assert "d2 1.000 [1.000, 1.000]" in found.sentence


def test_a_head_that_is_surely_wrong_is_inadequate(knows_all):
    wrong = knows_all.head_logprob.copy()
    wrong[:, 2:, 1] = math.log(0.05)
    artefact = replace(knows_all, head_logprob=wrong)
    assert verdicts.adequacy(artefact, rooted_predictions(artefact)).outcome == "fail"


def test_coherence_is_one_where_the_heads_are_the_trunk(knows_all, make_artefact):
    found = verdicts.coherence(rooted_predictions(knows_all))
    assert (found.outcome, found.interval.estimate) == ("pass", 1.0)
    # Against the trunk's law and the uniform one, paths of two tokens agree on sum_x min(p, 1/2): 3/4 or 1.
    uniform = make_artefact([TRUNK, np.full((2, 2), 0.5)])
    found = verdicts.coherence(rooted_predictions(uniform))
    assert found.outcome == "fail"
    assert found.interval.estimate == pytest.approx(0.83984375)


def test_shift_is_the_change_on_the_same_prompts(knows_all, make_artefact):
    before, after = (rooted_predictions(one) for one in (knows_all, make_artefact([TRUNK, np.full((2, 2), 0.5)])))
    same = verdicts.shift(before, before)
    assert (same.outcome, same.interval.estimate, same.interval.high) == ("pass", 0.0, 0.0)
    # 1 before; after it 3/4 behind a 0 and 1 behind a 1, which x1 and x2 are with 3/8 and 11/32.
    lost = verdicts.shift(before, after)
    assert (lost.outcome, lost.interval.unit) == ("fail", "prompt")
    assert lost.interval.estimate == pytest.approx(0.75 + 0.25 * (0.375 + 0.34375) / 2 - 1)
    assert verdicts.shift(after, before).outcome == "pass"


@pytest.mark.parametrize(
    ("promised", "outcome", "words"),
    [(0.5, "fail", "too much"), (0.0, "pass", "neither"), (-0.5, "pass", "too little")],
)
def test_exploitation_is_what_is_promised_beyond_what_comes(knows_all, promised, outcome, words):
    realized = np.full(knows_all.input_ids.shape, np.nan)
    realized[:, 0] = knows_all.input_ids[:, 3]
    artefact = replace(knows_all, realized_return=realized, imagined_return=realized + promised)
    found = verdicts.exploitation(artefact)
    assert (found.outcome, found.interval.estimate) == (outcome, pytest.approx(promised))
    assert words in found.sentence


def logged(depth, middle, low, high):
    """As a run logs an error; its last value counts."""
    values = {"": middle, "_lo90": low, "_hi90": high}
    return {
        f"world_model/depth_{depth}/error{end}": Series(np.array([0.0, 1.0]), np.array([9.0, value]))
        for end, value in values.items()
    }


def test_errors_are_read_from_the_log_at_the_deepest_depth():
    found = verdicts.split(logged(2, 0.2, 0.1, 0.3) | logged(3, 0.01, 0.0, 0.02), 3)
    assert (found.number, found.outcome) == ("error of depth 3, nats per token", "pass")
    assert str(found.interval) == "0.010 [0.000, 0.020]"
    assert verdicts.split(logged(2, 0.2, 0.1, 0.3), 3).outcome == "fail"
    assert verdicts.split(logged(2, 0.1, 0.0, 0.3), 3).outcome == "undetermined"
    assert verdicts.split(logged(2, 0.04, 0.0, 0.3), 3).outcome == "undetermined"  # not by its middle
    assert verdicts.split({}, 3).sentence == "Not measured in this run."


def test_returns_of_the_law_are_certified_and_those_of_another_world_are_not(make_artefact, marginal_heads):
    """Reward: the last token is 1. Roots 0..2 imagine it by A^3, A^2 and A."""
    artefact = make_artefact(marginal_heads)
    imagined, realized = artefact.imagined_return.copy(), artefact.realized_return.copy()
    for root, k in enumerate([3, 2, 1]):
        imagined[:, root] = marginal_heads[k - 1][artefact.input_ids[:, root], 1]
        realized[:, root] = artefact.input_ids[:, 3]

    def outcome(offset):
        shifted = replace(artefact, imagined_return=imagined + offset, realized_return=realized)
        return verdicts.certificate(shifted, rooted_predictions(shifted)).outcome

    assert outcome(0.0) == "pass"
    assert (outcome(0.6), outcome(-0.6)) == ("fail", "fail")
    assert verdicts.certificate(artefact, rooted_predictions(artefact)).sentence == "Not measured in this run."


def test_a_wrong_token_that_leads_where_no_text_was_paid_is_no_wrong_reward(make_artefact, marginal_heads):
    """All texts are paid 0, and one imagined in 64 falls by 100: less than what marginals get wrong explains."""
    artefact = make_artefact(marginal_heads)
    realized = np.where(np.arange(artefact.input_ids.shape[1]) < 3, 0.0, np.nan) + 0.0 * artefact.input_ids
    falls = (np.arange(len(realized)) % 64 == 0)[:, None]
    found = verdicts.certificate(
        replace(artefact, realized_return=realized, imagined_return=realized - 100.0 * falls),
        rooted_predictions(artefact),
    )
    assert found.outcome == "pass"
    assert found.sentence.startswith("Imagined less realized -1.562")


def test_an_interval_on_both_sides_of_a_rule_determines_nothing(make_artefact):
    # A depth 2 that knows only frequencies: its gain is 0 give or take.
    frequencies = make_artefact([TRUNK, np.full((2, 2), (0.66015625, 0.33984375))])
    found = verdicts.adequacy(frequencies, rooted_predictions(frequencies))
    assert found.interval.low < 0 < found.interval.high
    assert found.outcome == "undetermined"


@pytest.fixture
def run_dir(tmp_path, knows_all):
    """A run whose first evaluation came before the reward head had learnt."""
    returns = np.full(knows_all.input_ids.shape, np.nan)
    returns[:, 0] = knows_all.input_ids[:, 3]
    artefact = replace(knows_all, realized_return=returns, imagined_return=returns)
    for name in ("start", "final"):
        save_artefact(artefact, tmp_path / "artefacts", name)
    arms = (
        ArmSummary("before", wilson_interval(10, 128), artefact="start"),
        ArmSummary("PPO", wilson_interval(40, 128), imagined_return=0.3, artefact="final"),
    )
    write_summary(RunSummary(arms, 1.0, "2 cores"), tmp_path)
    return tmp_path


@pytest.mark.usefixtures("quick_report")
def test_a_report_opens_with_the_verdicts_and_says_what_was_not_measured(run_dir):
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert page.index("<h2>Verdicts</h2>") < page.index("<h2>Headline</h2>")
    assert len(page) < 5_000_000
    assert "Nothing had taught the reward head when this was evaluated" in page
    content = json.loads((run_dir / "metrics.json").read_text())
    outcomes = {one["topic"]: one["outcome"] for one in content["verdicts"]}
    assert outcomes == {
        "adequacy": "pass",
        "coherence": "pass",
        "split": "undetermined",
        "certificate": "pass",
        "shift": "pass",
        "exploitation": "pass",
        "mechanism": "undetermined",
    }
    unmeasured = [one["topic"] for one in content["verdicts"] if one["sentence"] == "Not measured in this run."]
    assert unmeasured == ["split"]


@pytest.mark.usefixtures("quick_report")
def test_the_tables_hold_the_same_numbers(run_dir):
    write_report(run_dir)
    content = json.loads((run_dir / "metrics.json").read_text())
    rows = {(row["evaluation"], row["quantity"], row["depth"]): row for row in content["numbers"]}
    accept = rows["final", "accept", 2]
    assert (accept["estimate"], accept["n"], accept["unit"], accept["level"]) == (1.0, 128, "sequence", 0.9)
    assert rows["final", "exact", None]["estimate"] == 40 / 128
    assert ("final", "return_bias", None) in rows
    assert ("start", "return_bias", None) not in rows  # noise
    with (run_dir / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["evaluation"], line["quantity"], float(line["estimate"])) for line in lines] == [
        (row["evaluation"], row["quantity"], row["estimate"]) for row in content["numbers"]
    ]


def test_without_evaluations_there_is_nothing_to_judge(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert verdicts.verdicts(read_run(tmp_path), {}) == ()
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "There is no evaluation to judge by." in page
    assert "No stage was timed." in page
    assert json.loads((tmp_path / "metrics.json").read_text())["numbers"] == []
