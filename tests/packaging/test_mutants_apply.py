"""Every fault of the catalogue can still be planted: a change that moves code moves its faults too."""

import tomllib
from pathlib import Path


def test_every_fault_has_its_place_and_its_tests(project_root: Path) -> None:
    catalogue = sorted((project_root / "benchmarks" / "mutants").glob("*.toml"))
    faults = [fault for path in catalogue for fault in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]]
    assert len(faults) > 100
    assert len({fault["name"] for fault in faults}) == len(faults)
    for fault in faults:
        assert (project_root / fault["file"]).read_text(encoding="utf-8").count(fault["old"]) == 1, fault["name"]
        assert all((project_root / test.partition("::")[0]).exists() for test in fault["tests"]), fault["name"]
        assert fault["new"] != fault["old"], fault["name"]
