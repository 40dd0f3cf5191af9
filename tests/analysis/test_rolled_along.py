"""Exposure and context out of a run's log, with the context of a right model beside them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from worldmtp.analysis import save_artefact, write_report
from worldmtp.analysis.rolled_along import rolled_along, rolled_along_figure, rolled_along_rows
from worldmtp.analysis.run_files import Series, logged_interval
from worldmtp.analysis.summary import ArmSummary, RunSummary, write_summary
from worldmtp.analysis.truth import truth_of
from worldmtp.statistics import wilson_interval

RATIOS = {"exposure": (1.1, 1.0, 1.2), "context": (1.5, 1.4, 1.6), "open_loop": (1.65, 1.5, 1.8)}


def records(steps=(0, 40), depths=(2, 3)):
    """A log with every ratio; the last step's are a tenth higher. Noise is .5, and the gap .1 at depth 2."""
    for place, step in enumerate(steps):
        found = {"step": step, "time_seconds": 1.0}
        for depth in depths:
            for name, values in RATIOS.items():
                ends = zip(("", "_lo90", "_hi90"), values, strict=True)
                found |= {f"world_model/depth_{depth}/{name}{end}": value + 0.1 * place for end, value in ends}
            found |= {
                f"world_model/depth_{depth}/ce_chain": 0.5,
                f"world_model/depth_{depth}/structural": 0.1 * (depth - 1),
            }
        yield found


def series(found):
    tags = {tag for record in found for tag in record if "/" in tag}
    return {
        tag: Series(
            np.array([record["step"] for record in found if tag in record], dtype=float),
            np.array([record[tag] for record in found if tag in record]),
        )
        for tag in tags
    }


def test_the_first_and_the_last_evaluation_are_read_with_the_context_of_a_right_model():
    found = rolled_along(series(list(records((0, 20, 40)))), {})
    assert list(found) == ["first", "last"]
    assert found["last"].depths == [2, 3]
    assert found["last"].ratios["exposure", 2].estimate == pytest.approx(1.1 + 0.2)
    # (noise + gap) / noise: (.5 + .1) / .5 and (.5 + .2) / .5.
    assert found["first"].explained == pytest.approx({2: 1.2, 3: 1.4})
    rows = rolled_along_rows(found)
    assert [row[:2] for row in rows] == [["first", "2"], ["first", "3"], ["last", "2"], ["last", "3"]]
    assert rows[0][2:] == ["1.100 [1.000, 1.200]", "1.500 [1.400, 1.600]", "1.650 [1.500, 1.800]", "1.200"]
    assert rolled_along_figure(found) is not None


def test_a_run_with_one_evaluation_has_one():
    assert list(rolled_along(series(list(records((0,)))), {})) == ["first"]


def test_where_the_law_is_known_it_says_what_a_right_model_would_have():
    law = np.full((4, 1, 2, 2), 0.5)
    noise, gap = np.full((4, 1, 2), 0.25), np.tile([0.0, 0.5], (4, 1, 1))
    truth = truth_of(law, law, law, noise, gap, False, np.ones((2, 2)), np.ones(2))
    found = rolled_along(series(list(records())), {"final": truth})
    # (.25 + .5) / .25; of depth 3 the truth says nothing, and the trunk does.
    assert found["last"].explained == pytest.approx({2: 3.0, 3: 1.4})
    # A goal that was told beforehand has no noise but for rounding, and a ratio to it says nothing.
    sure = replace(truth, noise=np.full((4, 1, 2), 1e-17), structural=np.full((4, 1, 2), -2e-17))
    assert 2 not in rolled_along(series(list(records())), {"final": sure})["last"].explained


def test_nothing_is_said_of_what_was_not_logged():
    assert rolled_along({}, {}) == {}
    assert rolled_along_figure({}) is None
    (record,) = records((0,), depths=(2,))
    del record["world_model/depth_2/context_hi90"]
    found = rolled_along(series([record]), {})
    assert rolled_along_rows(found) == []
    assert rolled_along_figure(found) is None


def test_an_interval_is_that_of_its_step():
    logged = series(list(records()))
    assert logged_interval(logged, "world_model/depth_2/context").high == pytest.approx(1.7)
    assert logged_interval(logged, "world_model/depth_2/context", 0.0).high == pytest.approx(1.6)
    assert logged_interval(logged, "world_model/depth_2/context", 7.0) is None
    assert logged_interval(logged, "world_model/depth_9/context") is None
    gone = logged | {"world_model/depth_2/context_lo90": Series(np.array([40.0]), np.array([np.nan]))}
    assert logged_interval(gone, "world_model/depth_2/context") is None


@pytest.mark.usefixtures("quick_report")
def test_the_report_shows_them(tmp_path):
    assert "Exposure and context were not measured" in write_report(tmp_path).read_text(encoding="utf-8")
    lines = [json.dumps(record) for record in records()]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "1.600 [1.500, 1.700]" in page  # the last context
    assert "by the trunk" in page


@pytest.mark.parametrize("is_closed", [True, False])
@pytest.mark.usefixtures("quick_report")
def test_the_numbers_of_heads_that_a_run_has_logged_are_in_the_table(tmp_path, make_artefact, transition, is_closed):
    """Beside the evaluation that they are of, also where a run was stopped just before its closing table."""
    for name in ("final", "warm_start"):
        save_artefact(make_artefact([transition, None]), tmp_path / "artefacts", name)
    arms = [ArmSummary("SFT", wilson_interval(0, 10), artefact="warm_start")]
    arms += [ArmSummary("PPO", wilson_interval(1, 10), artefact="final")]
    if is_closed:
        write_summary(RunSummary(tuple(arms), 1.0, "here"), tmp_path)
    found = list(records((0, 20, 40)))
    for record in found:
        record |= {"world_model/depth_2/structural_lo90": 0.05, "world_model/depth_2/structural_hi90": 0.2}
        record["eval/return_realized"] = 0.5
    for end in ("", "_lo90", "_hi90"):  # of the first evaluation the error is not known, of the last no structural gap
        found[-1][f"world_model/depth_2/error{end}"] = 0.3
        del found[-1][f"world_model/depth_2/structural{end}"]
    lines = [json.dumps(record) for record in found]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_report(tmp_path)
    rows = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["numbers"]
    numbers = {(row["evaluation"], row["quantity"], row["depth"]): row for row in rows}
    for name, more in (("warm_start", 0.0), ("final", 0.2)):
        for quantity, values in RATIOS.items():
            row = numbers[name, quantity, 2]
            assert [row[end] for end in ("estimate", "low", "high")] == pytest.approx([one + more for one in values])
        assert (row["unit"], row["method"], row["n"]) == ("sequence", "bootstrap, as logged", 0)
    split = numbers["warm_start", "structural", 2]
    assert [split[end] for end in ("estimate", "low", "high")] == [0.1, 0.05, 0.2]
    assert ("final", "structural", 2) not in numbers
    assert ("final", "error", 2) in numbers
    assert ("warm_start", "error", 2) not in numbers
    assert not any(quantity in RATIOS and depth != 2 for _, quantity, depth in numbers)  # of the artefacts' depths
