"""``docs/python.md``: its Python blocks run one after another as they stand, and its command lines compose."""

import re
import shlex

import pytest

from worldmtp.cli.evaluate import _parser as evaluation_arguments
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
    found = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    assert len(found) == 4
    for line in found:
        program, command, *arguments = shlex.split(line)
        assert program == "worldmtp"
        if command == "eval":
            assert evaluation_arguments().parse_args(arguments).dynamics == ["replies", "world"]
            continue
        assert command == "train"
        config = compose(*arguments)
        for override in arguments:
            key, _, value = override.lstrip("+").partition("=")
            if key == "hydra.run.dir":
                assert value == "runs/lake"  # as the line that reads it has it
            elif "." in key:
                assert str(select(config, key)) == value
            else:
                assert value in ("pretrained", "reverse", "cpu_smoke", "frozen_lake_slippery", "episodes")


def select(config, key):
    for part in key.split("."):
        config = config[part]
    return config
