"""What is built is what stands in the tree, and `worldmtp` is all a wheel puts into site-packages."""

import os
import subprocess
import sys
import tarfile
from configparser import ConfigParser
from pathlib import Path
from zipfile import ZipFile

import pytest

pytest.importorskip("build", reason="needs the dev extra")

LINKED = ("agents", "configs", "envs")


def build(project: Path, out: Path, *what: str) -> Path:
    """Build without isolation, hence without a network; ``what`` empty is the sdist, and the wheel from that sdist."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), *what, str(project)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def files_in_tree(project: Path) -> set[str]:
    """Every file of the product by the place it is installed at."""
    found = set()
    for top in ("worldmtp", *LINKED):
        for directory, _, files in os.walk(project / top):  # links are not followed
            for name in files:
                place = (Path(directory) / name).relative_to(project)
                found.add(str(Path("worldmtp") / place if top in LINKED else place))
    return found


def files_in_wheel(out: Path) -> set[str]:
    (wheel,) = out.glob("*.whl")
    with ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def entry_points(out: Path) -> ConfigParser:
    """What other programs find the installed package by."""
    (wheel,) = out.glob("*.whl")
    parser = ConfigParser()
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        parser.read_string(archive.read(name).decode())
    return parser


def test_wheel_holds_the_tree_and_nothing_else(project_copy: Path, tmp_path: Path) -> None:
    expected = files_in_tree(project_copy)
    named = ("py.typed", "envs/__init__.py", "analysis/report.html.jinja", "tracking/tab.js", "tracking/tab.css")
    assert {f"worldmtp/{name}" for name in named} <= expected
    out = build(project_copy, tmp_path / "dist", "--wheel")
    built = files_in_wheel(out)
    assert expected - built == set(), "not packaged: a package or a package-data pattern is missing in pyproject.toml"
    assert built - expected == set()
    assert {name.split("/")[0] for name in built} == {"worldmtp"}
    assert entry_points(out)["tensorboard_plugins"] == {
        "imagination": "worldmtp.tracking.tensorboard_tab:ImaginationPlugin"
    }


@pytest.mark.slow
def test_wheel_of_the_sdist_is_the_wheel_of_the_tree(project_copy: Path, tmp_path: Path) -> None:
    expected = files_in_tree(project_copy)
    out = build(project_copy, tmp_path / "dist")
    assert files_in_wheel(out) == expected
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert [member.name for member in archive if member.issym() or member.islnk()] == []
        names = [member.name.partition("/")[2] for member in archive if member.isfile()]
    assert "LICENSE" in names
    assert [name for name in names if name.startswith(tuple(f"worldmtp/{folder}/" for folder in LINKED))] == []
