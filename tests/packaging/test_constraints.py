"""constraints.txt pins what pyproject.toml asks for, inside the ranges it gives."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PIN = re.compile(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*")


@pytest.fixture(scope="module")
def pin_lines(project_root: Path) -> list[str]:
    lines = (project_root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_every_line_is_an_exact_public_version(pin_lines: list[str]) -> None:
    # Neither a local path, an index, an editable project nor a local label (+cpu): pins hold on any machine.
    assert [line for line in pin_lines if not PIN.fullmatch(line)] == []


def test_every_requirement_is_pinned_inside_its_range(pin_lines: list[str], project_root: Path) -> None:
    project = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    asked = [Requirement(text) for group in groups for text in group]
    pinned = {canonicalize_name(name): version for name, version in (line.split("==") for line in pin_lines)}
    assert len(asked) > 20
    for requirement in asked:
        name = canonicalize_name(requirement.name)
        if name == "worldmtp":  # the extra that includes another
            continue
        assert name in pinned, f"{requirement} is not in constraints.txt"
        assert requirement.specifier.contains(pinned[name]), f"{name}=={pinned[name]} is outside {requirement}"


def test_no_package_is_pinned_twice(pin_lines: list[str]) -> None:
    names = [canonicalize_name(line.split("==")[0]) for line in pin_lines]
    assert sorted(names) == sorted(set(names))
