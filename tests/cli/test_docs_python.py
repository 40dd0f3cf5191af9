"""``docs/python.md``: its Python blocks run one after another as they stand, and its command lines compose."""

import re
import shlex

import pytest

from worldmtp.cli.train import run

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture
def page(project_root):
    return (project_root / "docs" / "python.md").read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def test_the_python_blocks_run(page, tmp_path, monkeypatch, capsys, compose_tiny):
    monkeypatch.chdir(tmp_path)
    run(compose_tiny("sft.num_steps=1", "agent.rollout.num_iterations=0"), tmp_path / "runs" / "mine")
    capsys.readouterr()
    found = blocks(page, "python")
    assert len(found) == 7
    names = {"__name__": "docs_python"}
    for number, block in enumerate(found, start=1):
        exec(compile(block, f"docs/python.md, block {number}", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) == 6  # two iterations, what if, a plan, two evaluations
    assert {path.name for path in tmp_path.iterdir()} == {"trainer.pt", "model", "runs", "base", "checkpoint"}


def test_the_command_lines_compose(page, compose):
    found = blocks(page, "bash")
    assert len(found) == 2
    for block in found:
        program, command, *overrides = shlex.split(block.replace("\\\n", " "))
        assert (program, command) == ("worldmtp", "train")
        config = compose(*overrides)
        for override in overrides:
            key, _, value = override.lstrip("+").partition("=")
            if "." in key:
                assert str(select(config, key)) == value
            else:
                assert value in ("pretrained", "reverse", "cpu_smoke")


def select(config, key):
    for part in key.split("."):
        config = config[part]
    return config
