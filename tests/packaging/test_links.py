"""The folders envs, agents and configs are importable under worldmtp in a clone, and are all in the package list."""

import os
import tomllib
from pathlib import Path

import pytest

LINKED = ("agents", "configs", "envs")


def packages_in(root: Path) -> set[str]:
    """Import names of every folder of the product that holds a file, whether or not someone declared it."""
    found = set()
    for top, import_name in [("worldmtp", "worldmtp"), *((folder, f"worldmtp.{folder}") for folder in LINKED)]:
        for directory, subdirectories, files in os.walk(root / top):
            subdirectories[:] = [name for name in subdirectories if name != "__pycache__"]
            if files:
                inside = Path(directory).relative_to(root / top).parts
                found.add(".".join([import_name, *inside]))
    return found


@pytest.mark.parametrize("folder", LINKED)
def test_link_is_relative_and_leads_to_the_folder(project_root: Path, folder: str) -> None:
    link = project_root / "worldmtp" / folder
    assert link.is_symlink(), f"worldmtp/{folder} must be a link; clone with `git -c core.symlinks=true clone`"
    assert os.readlink(link) == f"../{folder}"
    assert (link / "__init__.py").samefile(project_root / folder / "__init__.py")


def test_every_package_is_declared(project_root: Path) -> None:
    setuptools = tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    declared = set(setuptools["packages"])
    found = packages_in(project_root)
    assert {"worldmtp.heads", "worldmtp.envs.tasks", "worldmtp.configs"} <= found
    assert not found - declared, f"add to [tool.setuptools] packages in pyproject.toml: {sorted(found - declared)}"
    assert not declared - found, f"take out of [tool.setuptools] packages in pyproject.toml: {sorted(declared - found)}"
    assert setuptools["package-dir"] == {f"worldmtp.{folder}": folder for folder in LINKED}


def test_every_package_has_an_init(project_root: Path) -> None:
    folders = [project_root.joinpath(*_without_link(name)) for name in packages_in(project_root)]
    missing = sorted(
        str(folder.relative_to(project_root)) for folder in folders if not (folder / "__init__.py").exists()
    )
    assert missing == [], "Hydra's pkg:// and the wheel need an __init__.py there"


def _without_link(package: str) -> list[str]:
    parts = package.split(".")
    return parts[1:] if len(parts) > 1 and parts[1] in LINKED else parts
