"""``train.log`` says what was started, what was noted, how far it came, and why it ended."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from worldmtp.cli import train
from worldmtp.cli.resume import resumed_config
from worldmtp.cli.schema import build
from worldmtp.cli.train import run
from worldmtp.training.config import TrainConfig
from worldmtp.training.run_dir import RUN_LOG, claim, read_config, run_log
from worldmtp.training.runs import resumption_notes


def test_a_run_is_logged_and_its_resumption_too(compose_tiny, no_report, tmp_path, capsys):
    run(compose_tiny("checkpoint.stop_after=1"), tmp_path)
    stopped = (tmp_path / "train.log").read_text()
    assert ", worldmtp 0.1.0, process " in stopped.splitlines()[0]
    assert "warm start: step 3/3" in stopped
    assert "reinforce: iteration 1/2 exact " in stopped
    assert f"stopped after iteration 1; go on with resume={tmp_path}" in stopped
    run(resumed_config(tmp_path, []), tmp_path, resumes=True)
    resumed = (tmp_path / "train.log").read_text().removeprefix(stopped)
    assert "iteration 2/2 exact" in resumed
    assert "iteration 1/2" not in resumed
    assert "exact match, sampled" in resumed  # the closing table
    assert resumed.rstrip().endswith("ended")
    assert "[INFO]" not in capsys.readouterr().err  # the terminal shows progress as it is
    assert not any(Path(getattr(one, "baseFilename", "")).parent == tmp_path for one in RUN_LOG.handlers)


def test_the_reason_of_a_failure_is_logged(tmp_path):
    with pytest.raises(ValueError, match="for a reason"), run_log(tmp_path / "refused"):
        raise ValueError("for a reason")
    log = (tmp_path / "refused" / "train.log").read_text()
    assert "[ERROR] failed: for a reason" in log
    assert "Traceback" in log
    with pytest.raises(SystemExit), run_log(tmp_path / "interrupted"):
        raise SystemExit(130)
    assert "failed: 130" in (tmp_path / "interrupted" / "train.log").read_text()


def test_lines_outside_a_run_go_nowhere(capsys):
    RUN_LOG.error("nobody's")
    assert capsys.readouterr() == ("", "")


def notes_of(compose_tiny, tmp_path, saved, *overrides):
    before = OmegaConf.to_container(compose_tiny("agent.rollout.num_iterations=4", *saved))
    with claim(tmp_path / "run", before, resumes=True) as claimed:
        claimed.keep()
    after = build(TrainConfig, resumed_config(tmp_path / "run", overrides))
    return resumption_notes(read_config(tmp_path / "run"), after)


def test_a_schedule_that_is_stretched_is_said_with_its_rates(compose_tiny, tmp_path):
    # The rate of iteration n of N is 1 - (n - 1) / N of the full one: of iteration 4, 1/4 before and 1 - 3/6 after.
    (note,) = notes_of(compose_tiny, tmp_path, (), "agent.rollout.num_iterations=6")
    assert note.startswith("agent.rollout.num_iterations=6 was 4, and the learning rate falls to zero over all iterati")
    assert note.endswith("In iteration 4, for one, that is 0.5 of agent.ppo.learning_rate, and it was 0.25.")
    (note,) = notes_of(compose_tiny, tmp_path, (), "agent.rollout.num_iterations=2")
    assert note.endswith("In iteration 2, for one, that is 0.5 of agent.ppo.learning_rate, and it was 0.75.")


def test_other_threads_are_said(compose_tiny, tmp_path):
    (note,) = notes_of(compose_tiny, tmp_path, (), "profile.num_threads=2")
    assert note.startswith("profile.num_threads=2 was 1: sums are taken in another order")


def test_nothing_is_said_where_nothing_changes(compose_tiny, tmp_path):
    constant = ("agent.ppo.anneals_learning_rate=false",)
    assert notes_of(compose_tiny, tmp_path, constant, "agent.rollout.num_iterations=6") == []
    assert notes_of(compose_tiny, tmp_path, (), "checkpoint.keep_last=5") == []


def test_the_notes_of_a_resumption_are_told(compose_tiny, no_report, tmp_path, capsys):
    run(compose_tiny("sft.num_steps=0", "agent.rollout.num_iterations=1"), tmp_path)
    train._resume(tmp_path, ["agent.rollout.num_iterations=2"])
    assert "note: agent.rollout.num_iterations=2 was 1, and the learning rate" in capsys.readouterr().err
    assert "note: agent.rollout.num_iterations=2 was 1" in (tmp_path / "train.log").read_text()
