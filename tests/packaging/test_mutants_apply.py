"""Every fault of the catalogue can still be planted: a change that moves code moves its faults too."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CATALOGUE = sorted((ROOT / "benchmarks" / "mutants").glob("*.toml"))


@pytest.mark.parametrize("catalogue", CATALOGUE, ids=lambda path: path.stem)
def test_every_fault_has_its_place_and_its_tests(catalogue: Path) -> None:
    for fault in tomllib.loads(catalogue.read_text(encoding="utf-8"))["mutant"]:
        assert (ROOT / fault["file"]).read_text(encoding="utf-8").count(fault["old"]) == 1, fault["name"]
        assert all((ROOT / test.partition("::")[0]).exists() for test in fault["tests"]), fault["name"]
        assert fault["new"] != fault["old"], fault["name"]


def test_there_is_a_catalogue() -> None:
    assert CATALOGUE
