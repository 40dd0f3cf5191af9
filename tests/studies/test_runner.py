"""Studies are taken up where they were, say which arm failed and why, and are made of values that fit."""

import json
import os
import signal
import sys
from functools import partial

import pytest

from worldmtp.studies.protocol import STUDIES, Arm, Study, make_study
from worldmtp.studies.runner import StudyError, read_headline, run_study

TOY = '''
import os, signal
from dataclasses import dataclass, field
from typing import ClassVar

from worldmtp.studies.protocol import Arm, StudySummary


@dataclass(frozen=True)
class ToyConfig:
    """Arms a, b, .. with the values that they find; ``breaks`` is raised by, ``dies`` kills, the arm of that name."""

    log: str
    values: dict[str, float]
    seeds: list[int] = field(default_factory=lambda: [0])
    rate: float = 1.0
    sizes: tuple[int, ...] = (1, 2)
    label: str | None = None
    breaks: str = ""
    dies: str = ""

    def __post_init__(self):
        if self.rate <= 0:
            raise ValueError(f"rate={self.rate} must be positive.")


class Toy:
    config_class: ClassVar[type] = ToyConfig

    def __init__(self, config):
        self.config = config

    def arms(self):
        return [Arm(name, seed) for seed in self.config.seeds for name in self.config.values]

    def prepare(self, directory, report):
        self._note("prepare")
        report(0.5, "half")
        (directory / "shared.txt").write_text("10")

    def run_arm(self, arm, directory, report):
        import torch

        self._note(f"{arm.label} pid={os.getpid()} threads={torch.get_num_threads()}")
        if (directory / "healed").exists():
            pass
        elif arm.name == self.config.breaks:
            raise FloatingPointError("the loss is nan")
        elif arm.name == self.config.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        report(0.5, "half way")
        offset = int((directory / "shared.txt").read_text())
        return {"arm": arm.label, "found": offset + self.config.values[arm.name] + 100 * arm.seed}

    def summarize(self, results):
        text = "\\n".join(f"{result['arm']}: {result['found']}" for result in results)
        return StudySummary("Toy", text, sum(result["found"] for result in results), b"PNG")

    def _note(self, line):
        with open(self.config.log, "a") as log:
            log.write(line + "\\n")
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Makes a study of arms a, b and c, from a module that worker processes can import too."""
    (tmp_path / "toy_study.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    log = tmp_path / "log"
    log.touch()

    def made(**values):
        # Prepared is 10, so one seed finds 11, 12 and 13.
        return make_study("toy_study:Toy", {"log": str(log), "values": {"a": 1.0, "b": 2.0, "c": 3.0}, **values})

    yield made
    del sys.modules["toy_study"]


@pytest.fixture
def logged(tmp_path):
    """What the study did, each with its process and threads, since it was last asked."""

    def lines():
        found = (tmp_path / "log").read_text().splitlines()
        (tmp_path / "log").write_text("")
        return found

    return lines


def silent(stage: str, fraction: float, note: str) -> None:
    """A report to nobody."""


def names(lines):
    return sorted(line.split()[0] for line in lines)


@pytest.mark.parametrize("num_jobs", [1, 2])
def test_arms_are_prepared_run_and_summarised_in_their_order(toy, logged, tmp_path, num_jobs):
    setup = partial(os.makedirs, tmp_path / "set_up", exist_ok=True)
    summary = run_study(toy(seeds=[0, 1]), tmp_path / "run", num_jobs, silent, setup)
    # 11 + 12 + 13, and each 100 more with seed 1.
    assert summary.headline == 36 + 336
    lines = logged()
    labels = ["a_seed0", "b_seed0", "c_seed0", "a_seed1", "b_seed1", "c_seed1"]
    assert names(lines) == sorted([*labels, "prepare"])
    processes = {line.split()[1] for line in lines if "pid=" in line}
    if num_jobs == 1:
        assert processes == {f"pid={os.getpid()}"}
    else:
        assert 1 <= len(processes) <= 2  # a worker takes one arm after another
        assert f"pid={os.getpid()}" not in processes
        assert {line.split()[2] for line in lines if "pid=" in line} == {"threads=1"}
    assert (tmp_path / "set_up").exists() == (num_jobs > 1)  # workers know nothing of this process
    content = json.loads((tmp_path / "run" / "study.json").read_text())
    assert list(content["results"]) == labels
    assert content["results"]["b_seed1"] == {"arm": "b_seed1", "found": 112.0}
    assert read_headline(tmp_path / "run") == 372
    text = (tmp_path / "run" / "study.md").read_text()
    assert text.startswith("# Toy\n\na_seed0: 11.0\nb_seed0: 12.0\n")
    assert (tmp_path / "run" / "study.png").read_bytes() == b"PNG"
    assert [path.name for path in (tmp_path / "run").rglob("*partial")] == []


def test_only_results_that_are_missing_are_run_again(toy, logged, tmp_path):
    run_study(toy(), tmp_path / "run", 1, silent)
    logged()
    (tmp_path / "run" / "arms" / "b_seed0.json").unlink()
    assert run_study(toy(), tmp_path / "run", 1, silent).headline == 36
    assert names(logged()) == ["b_seed0", "prepare"]
    assert run_study(toy(), tmp_path / "run", 1, silent).headline == 36
    assert logged() == []  # summarised anew from what is there


def test_a_failing_arm_is_named_and_the_others_results_stay(toy, logged, tmp_path):
    with pytest.raises(StudyError) as caught:
        run_study(toy(breaks="a"), tmp_path / "run", 1, silent)
    assert "1 of 3 arms failed:\n  a_seed0: FloatingPointError: the loss is nan\n" in str(caught.value)
    arms = tmp_path / "run" / "arms"
    assert sorted(path.name for path in arms.iterdir()) == ["a_seed0.error.txt", "b_seed0.json", "c_seed0.json"]
    assert "in run_arm" in (arms / "a_seed0.error.txt").read_text()
    assert not (tmp_path / "run" / "study.json").exists()
    logged()
    (tmp_path / "run" / "shared" / "healed").touch()
    assert run_study(toy(breaks="a"), tmp_path / "run", 1, silent).headline == 36
    assert names(logged()) == ["a_seed0", "prepare"]
    assert not (arms / "a_seed0.error.txt").exists()


def test_workers_that_fail_or_are_killed_lose_their_arms_alone(toy, logged, tmp_path):
    study = toy(breaks="a", dies="b")
    with pytest.raises(StudyError) as caught:
        run_study(study, tmp_path / "run", 2, silent)
    assert "2 of 3 arms failed:" in str(caught.value)
    assert "  a_seed0: FloatingPointError: the loss is nan\n" in str(caught.value)
    assert f"  b_seed0: its process ended with exit code -{int(signal.SIGKILL)}\n" in str(caught.value)
    logged()
    (tmp_path / "run" / "shared" / "healed").touch()
    assert run_study(study, tmp_path / "run", 1, silent).headline == 36
    assert names(logged()) == ["a_seed0", "b_seed0", "prepare"]


def test_progress_counts_what_was_there_from_the_first_word_on(toy, tmp_path):
    said: list[tuple[str, float, str]] = []
    run_study(toy(), tmp_path / "run", 1, lambda *words: said.append(words))
    assert said[:2] == [("prepare", 0.5, "half"), ("arms", 0.0, "0/3 arms")]
    # Half of the first of three arms is a sixth.
    assert said[2] == ("arms", pytest.approx(1 / 6), "0/3 arms  a_seed0 half way")
    assert said[3] == ("arms", pytest.approx(1 / 3), "1/3 arms  a_seed0 done")
    assert said[-1] == ("arms", 1.0, "3/3 arms  c_seed0 done")
    (tmp_path / "run" / "arms" / "b_seed0.json").unlink()
    said.clear()
    run_study(toy(), tmp_path / "run", 1, lambda *words: said.append(words))
    assert said[0] == ("arms", pytest.approx(2 / 3), "2/3 arms  half")  # prepared once more, not counted
    assert said[-1] == ("arms", 1.0, "3/3 arms  b_seed0 done")


def test_a_result_that_is_no_json_is_named(toy, tmp_path):
    run_study(toy(), tmp_path / "run", 1, silent)
    (tmp_path / "run" / "arms" / "c_seed0.json").write_text("{")
    with pytest.raises(ValueError, match=r"c_seed0\.json is no result of an arm .*delete it to run that arm again"):
        run_study(toy(), tmp_path / "run", 1, silent)


def test_what_cannot_be_run(toy, tmp_path):
    with pytest.raises(ValueError, match="num_jobs=0 must be at least 1"):
        run_study(toy(), tmp_path, 0, silent)
    with pytest.raises(ValueError, match=r"got \['a_seed0', 'a_seed0'\], of which \['a_seed0'\] more than once"):
        run_study(toy(values={"a": 1.0}, seeds=[0, 0]), tmp_path, 1, silent)
    with pytest.raises(ValueError, match="at least one arm"):
        run_study(toy(seeds=[]), tmp_path, 1, silent)
    with pytest.raises(ValueError, match=r"the arm 'a/b' names a file; use letters"):
        Arm("a/b", 0)


def test_a_study_is_made_of_plain_values(toy):
    study = toy(rate=2, sizes=[3, 4], label=None, seeds=[5])
    assert isinstance(study, Study)
    assert isinstance(study.config.rate, float)
    assert (study.config.sizes, study.config.seeds, study.config.label) == ((3, 4), [5], None)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"rat": 1.0}, ValueError, r"a key of study .*'rat' is unknown; did you mean 'rate'\?"),
        ({"rate": -1.0}, ValueError, r"study toy_study:Toy: rate=-1\.0 must be positive"),
        ({"rate": "fast"}, TypeError, r"study\.rate='fast' is a str; it must be float"),
        ({"rate": True}, TypeError, r"study\.rate=True is a bool; it must be float"),
        ({"seeds": [0, "x"]}, TypeError, r"study\.seeds\[1\]='x' is a str; it must be int"),
        ({"seeds": 3}, TypeError, r"study\.seeds=3 must be a list, as \[3\]"),
        ({"label": 3}, TypeError, r"study\.label=3 is a int; it must be str or null"),
    ],
)
def test_values_that_do_not_fit(toy, values, error, message):
    with pytest.raises(error, match=message):
        toy(**values)


def test_names_that_lead_nowhere(toy, tmp_path):
    with pytest.raises(ValueError, match=r"study='head_familie' is unknown; did you mean 'head_families'\?"):
        make_study("head_familie", {})
    with pytest.raises(ValueError, match=r"study='no_such_module:X' cannot be imported: No module named"):
        make_study("no_such_module:X", {})
    with pytest.raises(ValueError, match=r"study='toy_study:Tow' cannot be imported: .*has no attribute 'Tow'"):
        make_study("toy_study:Tow", {})
    with pytest.raises(TypeError, match=r"study='toy_study:ToyConfig' is .*, without a config_class"):
        make_study("toy_study:ToyConfig", {})
    with pytest.raises(ValueError, match=r"study toy_study:Toy lacks log, values; give a value, as study\.log=\.\.\."):
        make_study("toy_study:Toy", {})


def test_every_listed_study_is_there():
    assert make_study("cross_modal", {}).arms()  # its arms are fixed
    for name in set(STUDIES) - {"cross_modal"}:
        with pytest.raises(ValueError, match=f"study {name} lacks variants"):
            make_study(name, {})
