"""The console script as a user meets it: help, typos, own config directories, sweeps, exit codes."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from worldmtp.cli import train

QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none")


@pytest.fixture
def command_line(monkeypatch, tmp_path, capsys):
    """Runs ``worldmtp-train`` in this process, in an empty directory; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # and restored afterwards: the script sets it
    handlers = logging.root.handlers[:]

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["worldmtp-train", *arguments])
        code = 0
        try:
            train.main()
        except SystemExit as stop:
            code = stop.code or 0
        logging.root.handlers[:] = handlers  # Hydra's write to the stream of this test
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def config_of(command_line, *arguments):
    code, out, err = command_line("--cfg", "job", *arguments)
    assert code == 0, err
    return yaml.safe_load(out)


def test_cfg_job_shows_the_composed_config(command_line):
    shown = config_of(command_line, "env=reverse", "agent.ppo.gamma=0.25")
    assert shown["env"]["id"] == "worldmtp/Reverse-v0"
    assert shown["agent"]["ppo"]["gamma"] == 0.25


def test_help_names_groups_and_the_way_to_resume(command_line):
    code, out, _ = command_line("--help")
    assert code == 0
    assert "worldmtp-train resume=<run directory>" in out
    assert "imagination: baseline, counterfactual, off" in out
    assert "head: blockwise, eagle" in out


@pytest.mark.parametrize(
    ("argument", "meant"), [("agent.ppo.lerning_rate=1", "agent.ppo.learning_rate"), ("env=chain_sm", "chain_sum")]
)
def test_typo_ends_with_code_1_and_the_nearest_name(command_line, argument, meant):
    code, _, err = command_line(argument)
    assert code == 1
    assert err.startswith("error: ")
    assert f"Did you mean {meant!r}?" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("study", ["experiment=head_families", "study=head_families"])
def test_typo_in_a_field_of_a_study_names_the_nearest_of_that_study(command_line, study):
    code, _, err = command_line(study, "study.heads_steps=1")
    assert code == 1
    assert "Did you mean 'study.head_steps'?" in err


def test_config_dir_adds_options(command_line, tmp_path):
    (tmp_path / "mine" / "env").mkdir(parents=True)
    (tmp_path / "mine" / "env" / "short.yaml").write_text("id: worldmtp/Copy-v0\nkwargs: {max_new: 3}\n")
    shown = config_of(command_line, "--config-dir", "mine", "env=short")
    assert shown["env"] == {"id": "worldmtp/Copy-v0", "kwargs": {"max_new": 3}}


def test_a_file_of_the_user_is_held_to_the_schema(command_line, tmp_path):
    (tmp_path / "mine" / "imagination").mkdir(parents=True)
    (tmp_path / "mine" / "imagination" / "far.yaml").write_text("use: baseline\nhorizn: 2\n")
    code, _, err = command_line("--cfg", "job", "--config-dir", "mine", "imagination=far")
    assert code == 1
    assert "Did you mean 'imagination.horizon'?" in err


def test_the_variable_prepends_so_that_a_file_replaces_the_shipped_one(command_line, monkeypatch, tmp_path):
    for name, number in (("first", 3), ("second", 2)):
        (tmp_path / name / "profile").mkdir(parents=True)
        (tmp_path / name / "profile" / "cpu.yaml").write_text(f"device: cpu\nnum_threads: {number}\n")
    (tmp_path / "second" / "profile" / "own.yaml").write_text("device: cpu\nnum_threads: 5\n")
    monkeypatch.setenv("WORLDMTP_CONFIG_PATH", os.pathsep.join(["first", "second"]))
    assert config_of(command_line)["profile"]["num_threads"] == 3  # the shipped one says 2, as does the second
    assert config_of(command_line, "profile=own")["profile"]["num_threads"] == 5
    assert config_of(command_line, "profile=cpu_smoke")["profile"]["num_threads"] == 1  # still the shipped one


def test_a_directory_of_the_variable_that_is_none_is_an_error(command_line, monkeypatch):
    monkeypatch.setenv("WORLDMTP_CONFIG_PATH", "nowhere")
    code, _, err = command_line("--cfg", "job")
    assert code == 1
    assert "WORLDMTP_CONFIG_PATH names 'nowhere', which is not a directory" in err


def test_multirun_gives_each_job_its_own_directory(command_line, monkeypatch, tmp_path, tiny_overrides):
    seen = []
    monkeypatch.setattr(train, "run", lambda node, run_dir: seen.append((node.seed, run_dir)) or 0.0)
    code, _, err = command_line("-m", "seed=0,1", "imagination=off,counterfactual", "hydra.sweep.dir=sweep", *QUIET)
    assert code == 0, err
    assert [(seed, run_dir.name) for seed, run_dir in seen] == [
        (0, "0_seed0"),
        (0, "1_seed0"),
        (1, "2_seed1"),
        (1, "3_seed1"),
    ]
    assert {run_dir.parent for _, run_dir in seen} == {tmp_path / "sweep"}


@pytest.mark.usefixtures("no_report")
def test_a_sweep_trains_every_job(command_line, tmp_path, tiny_overrides):
    code, out, err = command_line("-m", "seed=0,1", "hydra.sweep.dir=sweep", *tiny_overrides, *QUIET)
    assert code == 0, err
    runs = [tmp_path / "sweep" / name for name in ("0_seed0", "1_seed1")]
    assert all((run / "DONE").exists() for run in runs)
    assert out.count("exact match") == 2
    # Started once more, a sweep that is done trains nothing.
    code, out, err = command_line("-m", "seed=0,1", "hydra.sweep.dir=sweep", *tiny_overrides, *QUIET)
    assert code == 0, err
    assert out.count("is done already") == 2


def test_output_directory_below_a_file_is_an_error(command_line, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = command_line("hydra.run.dir=file/run", *QUIET)
    assert code == 1
    assert "Not a directory" in err
    assert "hydra.run.dir=... and hydra.sweep.dir=... choose" in err


def test_a_defect_keeps_its_traceback(command_line, monkeypatch):
    def fails(node, run_dir):
        raise KeyError("defect")

    monkeypatch.setattr(train, "run", fails)
    with pytest.raises(KeyError, match="defect"):
        command_line("hydra.run.dir=out", *QUIET)


def test_the_variable_of_hydra_keeps_all_tracebacks(command_line, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="lerning_rate"):
        command_line("agent.ppo.lerning_rate=1")


def test_resume_in_a_config_file_is_refused(command_line, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "x.yaml").write_text("# @package _global_\nresume: somewhere\n")
    code, _, err = command_line("--config-dir", "mine", "experiment=x", "hydra.run.dir=out", *QUIET)
    assert code == 1
    assert "give it on the command line" in err


@pytest.mark.parametrize("arguments", [["--cfg", "job", "experiment=quickstart"], ["--help"]])
def test_the_installed_script_answers_without_torch_in_an_empty_directory(tmp_path, arguments):
    script = (
        f"import sys; sys.argv = ['worldmtp-train', *{arguments!r}]\n"
        "from worldmtp.cli.train import main\n"
        "main()\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "spell_backward" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_console_script_ends_with_code_1(tmp_path):
    script = Path(sys.executable).with_name("worldmtp-train")
    done = subprocess.run([script, "imagination=of"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Did you mean 'off'?" in done.stderr


def test_analyze_names_what_is_missing(tmp_path):
    script = Path(sys.executable).with_name("worldmtp-analyze")
    done = subprocess.run([script, tmp_path / "nowhere"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "nowhere" in done.stderr
