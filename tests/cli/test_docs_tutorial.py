"""``docs/tutorial.md``: its file, its commands and its Python, one after another in an empty directory."""

import re
import shlex
import subprocess
import sys

import pytest


@pytest.fixture
def page(project_root):
    return (project_root / "docs" / "tutorial.md").read_text(encoding="utf-8")


@pytest.fixture
def here(page, tmp_path):
    """An empty directory with the page's task."""
    ((name, text),) = re.findall(r"In `(\w+\.py)`:\n\n```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / name).write_text(text)
    return tmp_path


def commands(page, name=""):
    """The command lines of the page, those that go on over lines joined; of one command where it is named."""
    lines = re.findall(r"^worldmtp .*$", page.replace("\\\n", " "), flags=re.MULTILINE)
    return [line for line in lines if line.split()[1].startswith(name)]


def run_line(line, directory, *more):
    """What a line of the page prints, started as a shell would, with further arguments."""
    words = [sys.executable, "-m", "worldmtp.cli", *shlex.split(line)[1:], *more]
    done = subprocess.run(words, cwd=directory, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_command_of_the_page_is_run_by_a_test(page):
    assert [line.split()[1] for line in commands(page)] == ["envs", "train", "train", "train", "generate"]


def test_the_check_prints_what_the_page_shows(page, here):
    """All but what the sampling of a baseline could move; the run of the page is of the same seed."""
    (line,) = commands(page, "envs")
    assert run_line(line, here) in page


@pytest.mark.slow
def test_the_run_is_trained_opened_and_decoded(page, here, tiny_overrides, monkeypatch, capsys):
    rehearsal, training, comparison = commands(page, "train")
    left_out = ("env=", "+env.kwargs.pool_size=", "sft.num_steps=", "agent.rollout.num_prompts=")  # the page gives them
    small = [value for value in tiny_overrides if not value.startswith(left_out)] + ["agent.rollout.num_iterations=1"]
    sizes = [value for value in small if value.startswith("model.config.")]
    run_line(rehearsal, here, *sizes)
    run_line(training, here, *small)
    assert "seed=0,1,2 imagination=off,counterfactual" in comparison
    table = run_line(comparison.replace("seed=0,1,2", "seed=2"), here, *small)  # one seed is enough to see the table
    assert {path.name for path in (here / "runs").iterdir()} == {"rehearsal", "sort", "compare"}
    assert all((here / "runs" / name / "report.html").exists() for name in ("rehearsal", "sort"))
    header, _, *rows = table[table.index("imagination.use") :].splitlines()
    assert header.split() == ["imagination.use", "greedy", "before", "greedy", "after", "directory"]
    assert sorted(row.split()[0] for row in rows[:2]) == ["counterfactual", "off"]

    (generated,) = [run_line(line, here) for line in commands(page, "generate")]
    assert generated.startswith("hfaebc=")
    (block,) = [one for one in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "open_run" in one]
    monkeypatch.chdir(here)
    exec(compile(block, "docs/tutorial.md", "exec"), {})
    assert capsys.readouterr().out.startswith("hfaebc=")
