"""The console script as a user meets it: help, typos, own config directories, sweeps, exit codes."""

import copy
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore

from worldmtp.cli import train
from worldmtp.cli.schema import register
from worldmtp.cli.train import flags_first
from worldmtp.training import RunResult

FOUND = RunResult(Path("run"), 0.5, "the closing table")
QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none")


@pytest.fixture
def command_line(monkeypatch, tmp_path, capsys):
    """Runs ``worldmtp train`` in this process, in an empty directory; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # and restored afterwards: the script sets it, for one command
    handlers = logging.root.handlers[:]

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["worldmtp train", *arguments])
        code = 0
        try:
            train.main()
        except SystemExit as stop:
            code = stop.code or 0
        for handler in set(logging.root.handlers) - set(handlers):
            handler.close()
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
    assert "worldmtp train resume=<run directory>" in out
    assert "imagination: baseline, counterfactual, episodes, latent, off, search" in out
    assert "head: blockwise, eagle" in out
    for page in ("configuration.md", "environments.md", "own_environments.md", "imagination.md"):
        assert page in out.split()


def test_hydra_copies_no_option_that_it_is_not_asked_for():
    """It copies its sources at each look at a group: --help took three seconds. What is loaded is a copy as it was."""
    register()
    store = ConfigStore.instance()
    assert copy.deepcopy([store]) == [store]
    store.load("train_schema.yaml").node.seed = 3
    assert store.load("train_schema.yaml").node.seed == 0


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("agent.ppo.lerning_rate=1", "agent.ppo.learning_rate"),
        ("env=chain_sm", "chain_sum"),
        ("hed=latent", "head"),
        ("experment=quickstart", "experiment"),
    ],
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
    assert shown["env"] == {"id": "worldmtp/Copy-v0", "kwargs": {"max_new": 3}, "wrappers": []}


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
    assert [seed for seed, _ in seen] == [0, 0, 1, 1]
    assert all(re.fullmatch(rf"seed{seed}_[0-9a-f]{{8}}", run_dir.name) for seed, run_dir in seen)
    assert len({run_dir for _, run_dir in seen}) == 4
    assert {run_dir.parent for _, run_dir in seen} == {tmp_path / "sweep"}


def test_a_job_of_a_sweep_is_recognised_by_its_config(command_line, monkeypatch, tmp_path):
    seen = []

    def recorded(node, run_dir):
        seen.append((node.agent.ppo.learning_rate, node.env.kwargs.get("max_new"), run_dir.name))
        return 0.0

    monkeypatch.setattr(train, "run", recorded)
    sweeps = [
        ["agent.ppo.learning_rate=1e-4,3e-4", "+env.kwargs.max_new=9", "+env.kwargs.pool_size=64"],
        ["+env.kwargs.pool_size=64", "agent.ppo.learning_rate=3e-4,1e-4", "+env.kwargs.max_new=9"],  # another order
        ["agent.ppo.learning_rate=5e-4,0.0001,0.0003", "+env.kwargs.pool_size=64", "+env.kwargs.max_new=9"],  # one more
        ["agent.ppo.learning_rate=1e-4", "+env.kwargs.max_new=8,9", "+env.kwargs.pool_size=64"],  # another axis
    ]
    for sweep in sweeps:
        code, _, err = command_line("-m", "env=reverse", *sweep, "hydra.sweep.dir=sweep", *QUIET)
        assert code == 0, err
    names = {}
    for rate, max_new, name in seen:
        names.setdefault((rate, max_new), set()).add(name)
    assert len(seen) == 2 + 2 + 3 + 2
    assert sorted(names) == [(1e-4, 8), (1e-4, 9), (3e-4, 9), (5e-4, 9)]
    assert all(len(found) == 1 for found in names.values())
    assert len(set.union(*names.values())) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_a_sweep_trains_every_job(command_line, tmp_path, tiny_overrides):
    code, out, err = command_line("-m", "seed=0,1", "hydra.sweep.dir=sweep", *tiny_overrides, *QUIET)
    assert code == 0, err
    runs = [path for path in (tmp_path / "sweep").iterdir() if path.is_dir()]
    assert sorted(run.name.partition("_")[0] for run in runs) == ["seed0", "seed1"]
    assert all((run / "DONE").exists() for run in runs)
    assert out.count("exact match") == 2
    # Side by side at the end: what tells the jobs apart, and what the summary of each says.
    jobs, arms = out.rstrip().split("\n\n")[-2:]
    lines = jobs.splitlines()
    assert lines[0].split("  ")[0] == "seed"
    assert [word for word in lines[0].split("  ") if word.strip()][-1].strip() == "directory"
    for seed, line in enumerate(lines[2:]):
        (run,) = (run for run in runs if run.name.startswith(f"seed{seed}"))
        first, last = (arm["exact"] for arm in json.loads((run / "summary.json").read_text())["arms"])
        numbers = [f"{exact['estimate']:.3f} [{exact['low']:.3f}, {exact['high']:.3f}]" for exact in (first, last)]
        assert re.split(r"  +", line) == [str(seed), *numbers, f"sweep/{run.name}"]
    header, _, arm = (re.split(r"  +", line) for line in arms.splitlines())
    assert (header[0], *arm[:2]) == ("over seeds, greedy after", "all jobs", "2")
    # Started once more, in another order of values and of keys, a sweep that is done trains nothing.
    code, out, err = command_line("-m", *reversed(tiny_overrides), "seed=1,0", "hydra.sweep.dir=sweep", *QUIET)
    assert code == 0, err
    assert out.count("is done already; this is what it found.\narm ") == 2
    assert out.count("exact match") == 2
    assert out.rstrip().split("\n\n")[-2:] == [jobs, arms]


def files_of(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("wrong", ["seed=1", "agent.ppo.learning_rate=-1", "study.name=x", "resume=out"])
def test_a_refused_start_leaves_the_run_that_is_there(command_line, monkeypatch, tmp_path, tiny_overrides, wrong):
    """A finished run of another config, or one that was killed: every file of it stays as it is."""
    monkeypatch.setattr("worldmtp.training.pipeline.execute", lambda *args: FOUND)
    code, _, err = command_line(*tiny_overrides, "hydra.run.dir=out")
    assert code == 0, err
    run_dir = tmp_path / "out"
    assert "ended" in (run_dir / "train.log").read_text()
    (run_dir / ".hydra").mkdir()
    (run_dir / ".hydra" / "overrides.yaml").write_text("- seed=0\n")  # as runs had them
    (run_dir / ".lock").write_text('{"pid": 1, "host": "elsewhere"}')  # as a killed run leaves it
    (run_dir / "DONE").touch()
    before = files_of(run_dir)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    code, _, err = command_line(*tiny_overrides, wrong, "hydra.run.dir=out")
    assert code == 1
    assert "\nerror: " in f"\n{err}"
    assert ("hydra.run.dir=... and hydra.sweep.dir=... choose" in err) == ("already holds a run" in err)
    assert ("already holds a run" in err) == (wrong == "seed=1")
    assert files_of(run_dir) == before


def test_a_refused_resumption_leaves_the_config(command_line, monkeypatch, tmp_path, tiny_overrides):
    """The run's log says that it was tried."""
    with monkeypatch.context() as patch:
        patch.setattr("worldmtp.training.pipeline.execute", lambda *args: FOUND)
        assert command_line(*tiny_overrides, "hydra.run.dir=out")[0] == 0
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    run_dir = tmp_path / "out"
    before = files_of(run_dir)
    code, _, err = command_line("resume=out", "profile.device=cpuu", "logger.tensorboard=true")
    assert code == 1
    assert "profile.device='cpuu' is no device" in err
    log = before.pop(run_dir / "train.log")
    after = files_of(run_dir)
    assert after.pop(run_dir / "train.log").startswith(log)
    assert after == before
    # A value that is good is kept as soon as the run starts.
    monkeypatch.setattr("worldmtp.training.pipeline.execute", lambda config, run_dir, at_start: at_start() or FOUND)
    assert command_line("resume=out", "logger.tensorboard=true")[0] == 0
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["logger"]["tensorboard"] is True


def test_every_failure_of_a_sweep_is_said_and_logged(command_line, monkeypatch, tmp_path):
    monkeypatch.setattr("worldmtp.training.pipeline.execute", lambda *args: FOUND)
    code, out, err = command_line(
        "-m", "env=reverse", "agent.ppo.learning_rate=-1,1e-4,-2,3e-4", "hydra.sweep.dir=sweep", *QUIET
    )
    assert code == 1
    # Side by side at the end, those that were refused left out: they have no config.
    rows = [re.split(r"  +", line)[0] for line in out.rstrip().split("\n\n")[-1].splitlines()]
    assert (rows[0], sorted(rows[2:])) == ("agent.ppo.learning_rate", ["0.0001", "0.0003"])
    logs = {path.parent: path.read_text() for path in (tmp_path / "sweep").glob("*/train.log")}
    failed = {run_dir: log for run_dir, log in logs.items() if "failed" in log}
    assert (len(logs), len(failed)) == (4, 2)
    for value in ("-1.0", "-2.0"):
        (run_dir,) = [run_dir for run_dir, log in failed.items() if f"learning_rate={value} must be" in log]
        assert "Traceback" in failed[run_dir]
        assert f"error in {run_dir}: agent.ppo: learning_rate={value} must be" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["experiment=quickstart", "-m", "seed=0,1", "profile=cpu_smoke"],
        ["seed=0", "--cfg", "job", "experiment=quickstart"],
        ["seed=0", "--config-dir", "mine", "env=reverse", "--resolve", "name=x"],
        ["--config-dir=mine", "seed=0", "-cd", "other", "+a=b", "~env.kwargs"],
        ["seed=0", "experiment=quickstart", "--info"],
        ["seed=0", "-i", "plugins", "seed=1"],
        ["-m", "seed=0,1"],
        ["seed=0"],
        ["seed=0", "--package", "a.b", "-c", "all", "-h", "env=reverse", "-r"],
        [],
    ],
)
def test_flags_may_stand_anywhere(arguments):
    """As argparse itself reads a line whose flags and positional arguments are intermixed."""
    expected = get_args_parser().parse_intermixed_args(arguments)
    assert get_args_parser().parse_args(flags_first(arguments)) == expected
    assert expected.overrides == [one for one in arguments if ("=" in one or "~" in one) and not one.startswith("-")]


def test_an_override_is_not_taken_for_the_value_of_a_flag_that_needs_none():
    assert flags_first(["seed=0", "--info", "env=reverse"]) == ["--info=all", "seed=0", "env=reverse"]


def test_a_flag_in_the_middle_of_the_line(command_line):
    code, out, err = command_line("seed=3", "--cfg", "job", "env=reverse")
    assert (code, err) == (0, "")
    shown = yaml.safe_load(out)
    assert (shown["seed"], shown["env"]["id"]) == (3, "worldmtp/Reverse-v0")


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


def test_the_installed_script_answers_without_torch_in_an_empty_directory(tmp_path):
    """Both answers in one interpreter, since nine tenths of an answer are the start of one."""
    script = (
        "import sys\n"
        "from worldmtp.cli.train import main\n"
        "for arguments in (['--cfg', 'job', 'experiment=quickstart'], ['--help']):\n"
        "    sys.argv = ['worldmtp train', *arguments]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as stop:\n"
        "        assert not stop.code, stop.code\n"
        "    print('end of the answer')\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    config, page, rest = done.stdout.split("end of the answer\n")
    assert "spell_backward" in config
    assert "spell_backward" in page
    assert rest == ""
    assert list(tmp_path.iterdir()) == []


def test_the_console_script_ends_with_code_1(tmp_path):
    script = (sys.executable, "-m", "worldmtp.cli")
    done = subprocess.run(
        [*script, "train", "imagination=of"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Did you mean 'off'?" in done.stderr
