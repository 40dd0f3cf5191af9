"""The project's own files, for tests about the tree itself."""

import os
import shutil
from pathlib import Path

import pytest

FOLDERS = ("worldmtp", "envs", "agents", "configs", "tests", "benchmarks", "docs", ".ci")


@pytest.fixture(scope="session")
def project_texts(project_root: Path) -> dict[str, str]:
    """Text files by their path from the root; from the list of folders above, so that it needs no git."""
    paths = [path for path in project_root.iterdir() if path.is_file()]
    for folder in FOLDERS:
        for directory, subdirectories, names in os.walk(project_root / folder):  # links are not followed
            subdirectories[:] = [name for name in subdirectories if name != "__pycache__"]
            paths += [Path(directory) / name for name in names]
    texts = {}
    for path in paths:
        content = path.read_bytes()
        if b"\0" not in content:  # a picture
            texts[path.relative_to(project_root).as_posix()] = content.decode("utf-8")
    assert {"Makefile", "agents/rollout.py", "envs/__init__.py", "tests/conftest.py"} <= set(texts)
    return texts


@pytest.fixture(scope="session")
def project_sources(project_texts: dict[str, str]) -> dict[str, str]:
    """The Python files among them."""
    return {path: text for path, text in project_texts.items() if path.endswith(".py")}


@pytest.fixture
def project_copy(project_root: Path, tmp_path: Path) -> Path:
    """The clone's sources, links kept as links, in a directory that a test may spoil."""
    written = (".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist")
    left_out = shutil.ignore_patterns(*written, "runs", "outputs", "multirun")
    return shutil.copytree(project_root, tmp_path / "project", symlinks=True, ignore=left_out)
