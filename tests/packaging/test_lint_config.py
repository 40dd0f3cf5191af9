"""The linters are set so that they catch what the style guide forbids, in the linked folders as well."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HEAD = '"""A module."""\n\n'


def ruff_codes(project: Path, file: str, source: str) -> set[str]:
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--no-cache",
        "--output-format=concise",
        "--stdin-filename",
        file,
        "-",
    ]
    done = subprocess.run(command, cwd=project, input=source, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return {line.split()[1] for line in done.stdout.splitlines() if line.startswith(file)}


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("import envs\n\nenvs.make()\n", "TID251"),
        ("from agents import rollout\n\nrollout.run()\n", "TID251"),
        ("from configs import env\n\nenv.run()\n", "TID251"),
        ("from __future__ import annotations\n", "TID251"),
        ("from . import tasks\n\ntasks.run()\n", "TID252"),
        ('print("debug")\n', "T201"),
        ("x = 1  # TODO: later\n", "FIX002"),
        ("try:\n    x = 1\nexcept:\n    x = 2\n", "E722"),
        ("try:\n    x = 1\nexcept Exception:\n    x = 2\n", "BLE001"),
        ("for a, b in zip([1], [2, 3]):\n    c = a + b\n", "B905"),
        ("def public(x: int) -> int:\n    return x\n", "D103"),
        ("def _private(x) -> int:\n    return x\n", "ANN001"),
        ("def _private(x: int):\n    return x\n", "ANN202"),
        ("x = 1  # type: ignore\n", "PGH003"),
        ("x = 1  # noqa\n", "PGH004"),
        (f"x = '{'a' * 120}'\n", "E501"),
        ("x = undefined_name\n", "F821"),
    ],
)
@pytest.mark.parametrize("file", ["envs/planted.py", "worldmtp/planted.py"])
def test_ruff_catches(project_root: Path, file: str, source: str, code: str) -> None:
    pytest.importorskip("ruff", reason="needs the dev extra")
    assert code in ruff_codes(project_root, file, HEAD + source)


def test_ruff_lets_shapes_pass(project_root: Path) -> None:
    pytest.importorskip("ruff", reason="needs the dev extra")
    source = (
        "from jaxtyping import Float\nfrom torch import Tensor\n\n\n"
        'def total(rewards: Float[Tensor, "batch time"]) -> Float[Tensor, " batch"]:\n'
        '    """Sum of rewards over time."""\n    return rewards.sum(dim=1)\n'
    )
    assert ruff_codes(project_root, "worldmtp/planted.py", HEAD + source) == set()


def test_mypy_catches_a_wrong_type_behind_a_link_and_sees_the_file_once(project_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="needs the dev extra")
    # The project's configuration and layout, without its code: seconds instead of half a minute.
    shutil.copy(project_root / "pyproject.toml", tmp_path)
    for folder in ("worldmtp", "envs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text('"""A package."""\n', encoding="utf-8")
    (tmp_path / "worldmtp" / "envs").symlink_to("../envs")
    planted = HEAD + 'def length(text: str) -> int:\n    """Length."""\n    return text\n'
    (tmp_path / "envs" / "planted.py").write_text(planted, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--cache-dir", "off"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "worldmtp/envs/planted.py:5: error: Incompatible return value type" in done.stdout, done.stdout + done.stderr
    assert "Found 1 error in 1 file (checked 3 source files)" in done.stdout
