"""The catalogue of planted faults is not stale, and the program that plants them tells caught from survived."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

FEWEST = 300


@pytest.fixture
def mutants(project_root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``benchmarks/mutants.py``, under the name by which the processes that it starts find it."""
    monkeypatch.syspath_prepend(project_root / "benchmarks")
    module = importlib.import_module("mutants")
    monkeypatch.setattr(module, "_PRELOADED", [])  # the toys need nothing
    return module


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with one function, whose test looks at zero alone, and a slow test that would notice more."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take longer than the toy
    (tmp_path / "toy.py").write_text("def double(x):\n    return x + x\n")
    (tmp_path / "test_toy.py").write_text(
        "import pytest\nfrom toy import double\n\n\ndef test_zero():\n    assert double(0) == 0\n\n\n"
        "@pytest.mark.slow\ndef test_two():\n    assert double(2) == 4\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow: left out\n")
    return tmp_path


def toy_mutant(mutants: ModuleType, name: str, new: str, old: str = "x + x"):
    return mutants.Mutant(name, "toy.py", old, new, ("test_toy.py",))


def test_every_old_text_stands_once_in_its_file(mutants: ModuleType, project_root: Path) -> None:
    catalogue = mutants.read_catalogue()
    flaws = {mutant.name: mutants.staleness(mutant, project_root) for mutant in catalogue}
    assert {name: flaw for name, flaw in flaws.items() if flaw} == {}
    assert len(catalogue) >= FEWEST


def test_every_planted_text_is_python(mutants: ModuleType, project_root: Path) -> None:
    """A fault that does not compile would be caught by anything."""
    for mutant in mutants.read_catalogue():
        sound = (project_root / mutant.file).read_text(encoding="utf-8")
        compile(sound.replace(mutant.old, mutant.new), mutant.file, "exec")


def test_a_caught_a_surviving_a_stale_and_a_broken_fault(mutants: ModuleType, toy: Path) -> None:
    tried = [
        toy_mutant(mutants, "caught", "x + 1"),
        toy_mutant(mutants, "survives", "x * x"),
        toy_mutant(mutants, "stale", "y", old="x - x"),
        toy_mutant(mutants, "broken", "x +* x"),
    ]
    said: list[str] = []
    outcomes = mutants.run_mutants(tried, toy, timeout=120.0, report=said.append)
    assert [outcome.verdict for outcome in outcomes] == ["caught", "survived", "stale", "error"]
    assert outcomes[0].detail == "test_toy.py::test_zero"
    assert outcomes[2].detail == "the old text stands 0 times in toy.py, expected once"
    assert [line.split("]")[0] for line in said] == ["[1/5", "[2/5", "[3/5", "[4/5", "[5/5"]
    assert (toy / "toy.py").read_text() == "def double(x):\n    return x + x\n"
    assert mutants.table(outcomes).splitlines()[-1] == "1 of 4 caught, 25.0%, 1 error, 1 stale, 1 survived."


def test_tests_that_fail_without_a_fault_prove_nothing(mutants: ModuleType, toy: Path) -> None:
    (toy / "toy.py").write_text("def double(x):\n    return x + x + 1\n")
    with pytest.raises(RuntimeError, match=r"test_toy.py ended with code 1 without a fault; mend that first"):
        mutants.run_mutants([toy_mutant(mutants, "any", "0")], toy, timeout=120.0)


def test_tests_that_do_not_end_are_stopped_and_not_counted(mutants: ModuleType, toy: Path) -> None:
    (toy / "test_toy.py").write_text(
        "import time\nfrom toy import double\n\n\ndef test_it():\n    time.sleep(double(0))\n"
    )
    outcome = mutants.try_mutant(toy_mutant(mutants, "hangs", "x + 60"), toy, timeout=3.0)
    assert (outcome.verdict, outcome.detail) == ("timeout", "after 3 s")


def test_95_percent_are_enough_and_nothing_may_be_stale(mutants: ModuleType) -> None:
    def outcomes(*verdicts: str):
        return [mutants.Outcome(toy_mutant(mutants, "m", "y"), verdict, 0.0) for verdict in verdicts]

    assert mutants.is_enough(outcomes(*["caught"] * 19, "survived"))
    assert not mutants.is_enough(outcomes(*["caught"] * 18, "survived"))
    assert not mutants.is_enough(outcomes(*["caught"] * 19, "timeout", "survived"))
    assert not mutants.is_enough(outcomes(*["caught"] * 99, "stale"))
    assert not mutants.is_enough(outcomes(*["caught"] * 99, "error"))


def test_entries_that_make_no_sense_are_refused(mutants: ModuleType, tmp_path: Path) -> None:
    entry = '[[mutant]]\nname = "a"\nfile = "f"\nold = "x"\nnew = "y"\ntests = ["t"]\n'
    catalogue = tmp_path / "some.toml"
    catalogue.write_text(entry + entry)
    with pytest.raises(ValueError, match=r"names of mutants must be unique; repeated: \['a'\]"):
        mutants.read_catalogue(tmp_path)
    for wrong in (entry.replace('"y"', '"x"'), entry.replace('["t"]', "[]"), entry + 'why = "because"\n'):
        catalogue.write_text(wrong)
        with pytest.raises(ValueError, match=r"some.toml: the entry 'a' must have the keys \['file', 'name', 'new'"):
            mutants.read_catalogue(tmp_path)
