"""A study from the command line: in the run directory of a run, taken up like a run."""

import sys

import pytest

from worldmtp.cli.errors import fail_cleanly
from worldmtp.cli.resume import resumed_config
from worldmtp.cli.schema import build
from worldmtp.cli.train import run
from worldmtp.studies.protocol import STUDIES, make_study
from worldmtp.training.config import TrainConfig

OWN = '''
from dataclasses import dataclass
from pathlib import Path

from worldmtp.studies.protocol import Arm, StudySummary


@dataclass(frozen=True)
class Config:
    """Arms of that many numbers; the arm of a number in ``heals`` needs a file of its name."""

    num_arms: int
    heals: str = ""


class Mine:
    config_class = Config

    def __init__(self, config):
        self.config = config

    def arms(self):
        return [Arm(f"arm{number}", 0) for number in range(self.config.num_arms)]

    def prepare(self, directory, report):
        (directory / "prepared").touch()

    def run_arm(self, arm, directory, report):
        if arm.name == self.config.heals and not Path("healed").exists():
            raise ValueError("not healed")
        return {"number": int(arm.name[3:])}

    def summarize(self, results):
        return StudySummary("Mine", "| a table |", float(sum(result["number"] for result in results)), None)
'''


@pytest.fixture
def study(monkeypatch, tmp_path, compose):
    """Composes the config of a study in the current directory, an empty one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "my_study.py").write_text(OWN)

    def composed(*overrides):
        return compose("imports=[./my_study.py]", "+study.name='my_study:Mine'", "+study.num_arms=3", *overrides)

    yield composed
    sys.modules.pop("my_study", None)


def test_a_study_runs_once_and_says_what_it_found(study, tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert run(study(), run_dir) == 0 + 1 + 2
    first = capsys.readouterr()
    assert "# Mine\n\n| a table |" in first.out
    assert "3/3 arms  arm2_seed0 done" in first.err
    assert (run_dir / "DONE").exists()
    assert sorted(path.name for path in run_dir.iterdir()) == [
        ".lock",
        "DONE",
        "arms",
        "config.yaml",
        "shared",
        "study.json",
        "study.md",
        "train.log",
    ]
    assert run(study(), run_dir) == 3.0
    again = capsys.readouterr()
    assert "is done already; this is what it found" in again.out
    assert "| a table |" in again.out
    assert again.err == ""  # nothing was run


def test_a_finished_study_is_summarised_anew_when_resumed(study, tmp_path, capsys):
    run(study(), tmp_path / "run")
    (tmp_path / "run" / "study.md").unlink()
    assert run(resumed_config(tmp_path / "run", []), tmp_path / "run", resumes=True) == 3.0
    assert "| a table |" in (tmp_path / "run" / "study.md").read_text()


def test_an_arm_that_fails_ends_with_its_name_and_the_way_back(study, tmp_path, capsys):
    config = study("+study.heals=arm1", "profile.num_jobs=2")
    with pytest.raises(SystemExit):
        fail_cleanly(lambda: run(config, tmp_path / "run"))
    err = capsys.readouterr().err
    assert "error: 1 of 3 arms failed:\n  arm1_seed0: ValueError: not healed\n" in err
    assert f"go on with resume={tmp_path / 'run'}" in err
    assert "Traceback (most recent" not in err
    assert not (tmp_path / "run" / "DONE").exists()
    (tmp_path / "healed").touch()
    resumed = resumed_config(tmp_path / "run", ["profile.num_jobs=1"])
    assert run(resumed, tmp_path / "run", resumes=True) == 3.0
    assert (tmp_path / "run" / "DONE").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["study.name=head_familis"], r"study='head_familis' is unknown; did you mean 'head_families'"),
        (["study.name=null"], r"study\.name=None must be one of \['cross_modal', 'densification', 'head_families', "),
        (["+study.num_arm=3"], r"a key of study my_study:Mine='num_arm' is unknown; did you mean 'num_arms'"),
        (["study.num_arms=few"], r"study\.num_arms='few' is a str; it must be int"),
    ],
)
def test_a_study_that_cannot_be(study, tmp_path, overrides, message):
    with pytest.raises((ValueError, TypeError), match=message):
        run(study(*overrides), tmp_path / "run")
    assert not (tmp_path / "run" / "arms").exists()


def test_interrupted_by_the_keyboard(study, tmp_path, monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("worldmtp.studies.runner.run_here", interrupted)
    with pytest.raises(SystemExit) as caught:
        run(study(), tmp_path / "run")
    assert caught.value.code == 130
    assert f"go on with resume={tmp_path / 'run'}" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_each_shipped_study_lists_all_its_fields(compose, name):
    from dataclasses import fields

    values = build(TrainConfig, compose(f"experiment={name}")).study
    assert values.pop("name") == name
    made = make_study(name, values)
    # So that each can be overridden without a plus sign, and a typo be told from a new key.
    assert list(values) == [column.name for column in fields(made.config_class)]
    names = {arm.name for arm in made.arms()}
    assert names == set(values.get("variants", names))
    assert len(made.arms()) == len(names) * len(values["seeds"])
