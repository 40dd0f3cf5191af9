"""Plant one-line faults, one at a time, and report which of them the default test suite catches.

    python benchmarks/mutants.py                          # all; an hour or so on one core
    python benchmarks/mutants.py --jobs 4                 # four copies of the tree at once
    python benchmarks/mutants.py --only returns/ turns    # those whose names contain one of these
    python benchmarks/mutants.py --list
    python benchmarks/mutants.py --check                  # only whether each can still be planted, run nothing

The catalogue is ``benchmarks/mutants/*.toml``. An entry is a fault that a careful reviewer would plant::

    [[mutant]]
    name = "returns/no-bootstrap"  # unique, <room>/<what is wrong>
    file = "worldmtp/returns.py"
    old = "following = next_values[:, -1]"  # stands exactly once in the file
    new = "following = 0 * next_values[:, -1]"
    tests = ["tests/test_returns.py"]  # what should catch it; only the default selection is run

Each fault is written into a copy of the tree, never into the tree itself, and its tests are run there with ``-x``. The
tests must pass without a fault first, or nothing that they report would mean anything. Verdicts::

    caught       a test failed
    survived     all tests passed: a test is missing
    timeout      the tests did not end in time; not counted as caught, since a slow machine looks the same
    stale        ``old`` does not stand exactly once in the file: mend the catalogue
    error        pytest could not run the tests, for instance because the fault breaks an import

The command ends with code 1 if fewer than 95 % are caught, or if an entry is stale or in error.

Left out: faults made by a program (mutmut, cosmic-ray). They are thousands, most of them equivalent or trivial, and a
run takes days; these are few and each one would be a wrong result in somebody's paper.
"""

import argparse
import multiprocessing
import os
import queue
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CATALOGUE = Path(__file__).resolve().with_suffix("")
DEFAULT_SELECTION = "not slow and not gpu and not browser"
MIN_CAUGHT = 0.95
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
_PRELOADED = ["torch", "transformers", "trl", "peft", "datasets", "gymnasium", "reasoning_gym", "scipy.stats", "hydra"]
_running: set[ForkServerProcess] = set()
_NOT_COPIED = ("*.egg-info", ".*", "__pycache__", "build", "dist", "multirun", "outputs", "runs")


@dataclass(frozen=True)
class Mutant:
    """A fault: the text of a file that is exchanged, and the tests that should notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant; ``detail`` is the test that failed, or what went wrong."""

    mutant: Mutant
    verdict: str
    seconds: float
    detail: str = ""


def read_catalogue(directory: Path = CATALOGUE) -> list[Mutant]:
    """Return the entries of all TOML files of a directory.

    Raises:
        ValueError: if an entry has other keys than it should, changes nothing, or repeats a name.
    """
    mutants = []
    expected = {field.name for field in fields(Mutant)}
    for path in sorted(directory.glob("*.toml")):
        for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("mutant", []):
            if set(entry) != expected or not entry["tests"] or entry["old"] == entry["new"]:
                raise ValueError(
                    f"{path.name}: the entry {entry.get('name', entry)!r} must have the keys {sorted(expected)}, at "
                    f"least one test and a new text that differs from the old; it has {sorted(entry)}."
                )
            mutants.append(Mutant(**{**entry, "tests": tuple(entry["tests"])}))
    repeated = [name for name, count in Counter(mutant.name for mutant in mutants).items() if count > 1]
    if repeated:
        raise ValueError(f"names of mutants must be unique; repeated: {repeated}.")
    return mutants


def staleness(mutant: Mutant, root: Path) -> str:
    """Return why a mutant cannot be planted in the tree at ``root``; an empty text if it can."""
    missing = [path for path in (mutant.file, *mutant.tests) if not (root / path.partition("::")[0]).exists()]
    if missing:
        return f"no such file: {', '.join(missing)}"
    count = (root / mutant.file).read_text(encoding="utf-8").count(mutant.old)
    return "" if count == 1 else f"the old text stands {count} times in {mutant.file}, expected once"


def run_tests(tree: Path, tests: Sequence[str], timeout: float) -> tuple[int | None, str]:
    """Run the default selection of some tests in a tree; pytest's exit code, None if time ran out, and its output.

    It runs in a fork of a server that has imported the libraries, never the tree: to import them takes longer than most
    of the tests.
    """
    with tempfile.NamedTemporaryFile(prefix="pytest-", suffix=".log") as log:
        # Bytecode is kept (empty is unset): to compile the tree anew takes longer than most of the tests.
        environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": ""}
        process = _server().Process(target=_run_pytest, args=(tree, tests, environment, log.name))
        process.start()
        _running.add(process)
        try:
            process.join(timeout)
            code = process.exitcode
            if code is None:
                _end(process)
                process.join()
        finally:
            _running.discard(process)
        return code, Path(log.name).read_text(encoding="utf-8", errors="replace")


@cache
def _server() -> ForkServerContext:
    """Return the start method whose server imports what every test would."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _run_pytest(tree: Path, tests: Sequence[str], environment: dict[str, str], log: str) -> None:
    """Be pytest in a process and a session of its own, with the output in a file; does not return."""
    os.setsid()
    os.chdir(tree)
    output = os.open(log, os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    sys.dont_write_bytecode = False
    sys.path[0] = str(tree)
    code = int(pytest.ExitCode.INTERNAL_ERROR)
    try:
        early = "ignore:Module already imported"  # the libraries with a plugin for pytest
        code = pytest.main(["-x", "-q", "-W", early, "-m", DEFAULT_SELECTION, "-p", "no:cacheprovider", *tests])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def try_mutant(mutant: Mutant, tree: Path, timeout: float) -> Outcome:
    """Plant a fault in a copy of the tree, run its tests, and put the file back."""
    flaw = staleness(mutant, tree)
    if flaw:
        return Outcome(mutant, "stale", 0.0, flaw)
    path, start = tree / mutant.file, time.monotonic()
    sound = path.read_text(encoding="utf-8")
    try:
        _write(path, sound.replace(mutant.old, mutant.new))
        code, output = run_tests(tree, mutant.tests, timeout)
    finally:
        _write(path, sound)
    seconds = time.monotonic() - start
    if code is None:
        return Outcome(mutant, "timeout", seconds, f"after {timeout:.0f} s")
    if code == 0:
        return Outcome(mutant, "survived", seconds, " ".join(mutant.tests))
    if code == 1:
        failed = _FAILED.search(output)
        return Outcome(mutant, "caught", seconds, failed.group(1) if failed else "")
    return Outcome(mutant, "error", seconds, f"pytest ended with code {code}: {_last_line(output)}")


def run_mutants(
    mutants: Sequence[Mutant],
    root: Path,
    *,
    jobs: int = 1,
    timeout: float = 300.0,
    checks_baseline: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> list[Outcome]:
    """Try mutants in ``jobs`` copies of the tree at ``root``; their outcomes in order.

    Args:
        mutants: what to plant.
        root: the tree, which is read only.
        jobs: copies that work at the same time.
        timeout: seconds that the tests of one mutant may take.
        checks_baseline: whether the tests must pass without a fault first.
        report: gets a line when something is done.

    Raises:
        RuntimeError: if the tests fail without a fault.
    """
    plantable = [mutant for mutant in mutants if not staleness(mutant, root)]
    selections = list(dict.fromkeys(mutant.tests for mutant in plantable)) if checks_baseline else []
    start, num_done = time.monotonic(), 0

    def said(line: str) -> None:
        nonlocal num_done
        num_done += 1
        left = (time.monotonic() - start) / num_done * (len(selections) + len(mutants) - num_done)
        report(f"[{num_done}/{len(selections) + len(mutants)}] {line}, {left / 60:.1f} min left")

    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch, ThreadPoolExecutor(jobs) as workers:
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for job in range(jobs):
            copied = Path(scratch) / f"tree-{job}"
            trees.put(shutil.copytree(root, copied, symlinks=True, ignore=shutil.ignore_patterns(*_NOT_COPIED)))

        @contextmanager
        def lent() -> Iterator[Path]:
            tree = trees.get()
            try:
                yield tree
            finally:
                trees.put(tree)

        def check(tests: tuple[str, ...]) -> None:
            with lent() as tree:
                code, output = run_tests(tree, tests, timeout)
            if code != 0:
                reason = "ran out of time" if code is None else f"ended with code {code}"
                raise RuntimeError(f"{' '.join(tests)} {reason} without a fault; mend that first.\n{output}")
            said(f"sound     {' '.join(tests)}")

        def attempt(mutant: Mutant) -> Outcome:
            with lent() as tree:
                outcome = try_mutant(mutant, tree, timeout)
            said(f"{outcome.verdict:9} {mutant.name}")
            return outcome

        try:
            for future in as_completed([workers.submit(check, tests) for tests in selections]):
                future.result()
            return list(workers.map(attempt, mutants))
        except BaseException:  # Ctrl-C too: sessions of their own do not hear it
            workers.shutdown(wait=False, cancel_futures=True)
            for process in list(_running):
                _end(process)
            raise


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as Markdown, those that were not caught first, and a line that sums them up."""
    lines = ["| mutant | file | verdict | seconds | by |", "|---|---|---|---|---|"]
    for outcome in sorted(outcomes, key=lambda outcome: outcome.verdict == "caught"):
        mutant = outcome.mutant
        cells = (mutant.name, mutant.file, outcome.verdict, f"{outcome.seconds:.0f}", outcome.detail)
        lines.append(f"| {' | '.join(cells)} |")
    counts = Counter(outcome.verdict for outcome in outcomes)
    others = "".join(f", {count} {verdict}" for verdict, count in sorted(counts.items()) if verdict != "caught")
    share = counts["caught"] / len(outcomes)
    return "\n".join([*lines, "", f"{counts['caught']} of {len(outcomes)} caught, {share:.1%}{others}."])


def is_enough(outcomes: Sequence[Outcome]) -> bool:
    """Return whether at least 95 % were caught and every entry of the catalogue could be judged."""
    verdicts = [outcome.verdict for outcome in outcomes]
    return not {"stale", "error"} & set(verdicts) and verdicts.count("caught") >= MIN_CAUGHT * len(verdicts)


def _write(path: Path, source: str) -> None:
    """Write a source file and drop its bytecode, which is taken for new if second and length are the same."""
    path.write_text(source, encoding="utf-8")
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


def _end(process: ForkServerProcess) -> None:
    """Kill pytest and what its tests started."""
    with suppress(ProcessLookupError):  # it has just ended by itself, or has no session of its own yet
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _last_line(output: str) -> str:
    return next((line for line in reversed(output.splitlines()) if line.strip()), "no output")


def main() -> None:
    """Run the chosen mutants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="copies of the tree that work at the same time")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for the tests of one mutant")
    parser.add_argument("--no-baseline", action="store_true", help="trust that the tests pass without a fault")
    parser.add_argument("--list", action="store_true", help="print names and files, run nothing")
    parser.add_argument("--check", action="store_true", help="print what cannot be planted, run nothing")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    mutants = [mutant for mutant in read_catalogue() if any(part in mutant.name for part in arguments.only)]
    if not mutants:
        parser.error(f"--only {' '.join(arguments.only)} names no mutant; see --list.")
    if arguments.list:
        print("\n".join(f"{mutant.name}  {mutant.file}" for mutant in mutants))
        return
    if arguments.check:
        flaws = [f"{mutant.name}: {flaw}" for mutant in mutants if (flaw := staleness(mutant, ROOT))]
        sys.exit("\n".join(flaws) or None)
    outcomes = run_mutants(
        mutants,
        ROOT,
        jobs=arguments.jobs,
        timeout=arguments.timeout,
        checks_baseline=not arguments.no_baseline,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(table(outcomes))
    sys.exit(0 if is_enough(outcomes) else 1)


if __name__ == "__main__":
    main()
