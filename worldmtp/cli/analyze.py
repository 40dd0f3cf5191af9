"""Write the report of a run from what it saved, or lay two runs side by side; no model, no environment.

``worldmtp analyze A B`` pairs the held-out prompts that both answered, and writes the page into B; of two sweeps it
pairs their jobs by seed. Also the jobs of a sweep side by side: what tells them apart, what each found, and the
interquartile means of arms with several seeds. Jobs are known by their files alone, so that a sweep that was killed, or
had jobs that failed, shows the others.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from worldmtp.analysis import write_report
from worldmtp.analysis.comparison import Comparison, compare_runs
from worldmtp.analysis.differences import aligned
from worldmtp.analysis.over_seeds import interquartile_mean, probability_of_improvement
from worldmtp.analysis.run_files import RUN_FILES, config_values
from worldmtp.analysis.summary import SUMMARY_FILE, read_summary
from worldmtp.analysis.sweep_comparison import SweepComparison, compare_sweeps
from worldmtp.cli.errors import fail_cleanly
from worldmtp.training.run_dir import CONFIG_FILE

_NONE = "-"
_DAMAGED = "damaged"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="worldmtp analyze",
        description=(__doc__ or "").partition("\n")[0],
        epilog="example: worldmtp analyze RUN OTHER_RUN. A page in docs/ of the repository: analysis.md.",
    )
    parser.add_argument("run_dir", type=Path, help="directory of a run of worldmtp train")
    parser.add_argument(
        "other_dir",
        type=Path,
        nargs="?",
        help="another run of the same task, seed and eval.num_prompts, or another sweep where the first is one; the "
        "comparison is written into it",
    )
    arguments = parser.parse_args()
    fail_cleanly(lambda: print(_found_of(arguments.run_dir, arguments.other_dir)))


def _found_of(run_dir: Path, other_dir: Path | None) -> Path | Comparison | SweepComparison:
    """Write the report of a run, or how two runs or two sweeps differ; return what to tell.

    Raises:
        ValueError: a directory holds no run, both are the same one, or the two answered no prompt or have no seed in
            common.
        FileNotFoundError: there is no such directory.
    """
    if other_dir is not None and run_dir.resolve() == other_dir.resolve():
        raise ValueError(
            f"{run_dir} and {other_dir} are one directory, which differs from itself in nothing; name two."
        )
    if other_dir is not None and _is_sweep(run_dir) and _is_sweep(other_dir):
        return compare_sweeps(run_dir, other_dir)
    _check_run(run_dir)
    if other_dir is None:
        return write_report(run_dir)
    _check_run(other_dir)
    return compare_runs(run_dir, other_dir)


def _is_sweep(directory: Path) -> bool:
    return not any((directory / name).exists() for name in RUN_FILES) and bool(jobs_of(directory))


def _check_run(run_dir: Path) -> None:
    """Raise if a directory holds nothing of a run; the message names the jobs of a sweep that it holds."""
    if run_dir.is_dir() and not any((run_dir / name).exists() for name in RUN_FILES):
        if jobs_of(run_dir):
            table = sweep_table(run_dir)
            raise ValueError(
                f"{run_dir} is the directory of a sweep, not of a run; analyze one of its jobs, or name "
                f"another sweep to compare with:\n\n{table}"
            )
        raise ValueError(
            f"{run_dir} holds no run: it has none of {', '.join(RUN_FILES)}. Pass the directory that worldmtp train "
            "printed."
        )


def jobs_of(sweep_dir: Path) -> list[Path]:
    """Return the run directories right below a directory, by name."""
    return sorted(path.parent for path in sweep_dir.glob(f"*/{CONFIG_FILE}"))


def sweep_table(sweep_dir: Path) -> str:
    """Return one line a job: config values that differ between jobs, greedy exact match before and after, and the path.

    "-" stands for what a job has not found, or not yet.
    """
    jobs = jobs_of(sweep_dir)
    configs = [_read(job / CONFIG_FILE) for job in jobs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differing = [key for key in keys if len({config.get(key, _NONE) for config in configs}) > 1]
    header = [*(differing or ["seed"]), "greedy before", "greedy after", "directory"]
    rows = [
        [*(config.get(key, _NONE) for key in header[:-3]), *_found(job), str(job)]
        for job, config in zip(jobs, configs, strict=True)
    ]
    return "\n\n".join([_table([header, *rows]), *_over_seeds(jobs, configs, differing)])


def _over_seeds(jobs: Sequence[Path], configs: Sequence[Mapping[str, str]], differing: Sequence[str]) -> list[str]:
    """Return a table of greedy exact match over seeds, an arm a row, if an arm was run with two of them.

    An arm is what differs but for the seed and the environment, whose ids are the tasks.
    """
    keys = [key for key in differing if key not in ("seed", "env.id")]
    arms: dict[str, dict[str, list[float]]] = {}
    for job, config in zip(jobs, configs, strict=True):
        path = job / SUMMARY_FILE
        if not path.is_file() or _found(job)[1] == _DAMAGED:
            continue
        name = " ".join(f"{key}={config.get(key, _NONE)}" for key in keys) or "all jobs"
        tasks = arms.setdefault(name, {})
        tasks.setdefault(config.get("env.id", _NONE), []).append(read_summary(path).arms[-1].exact.estimate)
    if not any(len(scores) > 1 for tasks in arms.values() for scores in tasks.values()):
        return []
    scored = {name: {task: np.array(scores) for task, scores in tasks.items()} for name, tasks in arms.items()}
    first = next(iter(scored))
    rows = [["over seeds, greedy after", "seeds", "interquartile mean [90 %]", f"better than {first} [90 %]"]]
    for name, scores in scored.items():
        better = _NONE
        if name != first and set(scores) == set(scored[first]):
            better = str(probability_of_improvement(scored[first], scores, generator=0))
        seeds = str(sum(map(len, scores.values())))
        rows.append([name, seeds, str(interquartile_mean(scores, generator=0)), better])
    return [_table(rows)]


def _read(path: Path) -> dict[str, str]:
    try:
        return config_values(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):  # the other jobs are shown all the same
        return {CONFIG_FILE: _DAMAGED}


def _found(job: Path) -> tuple[str, str]:
    """Return the greedy exact match of the first and of the last evaluation, with its interval; a study has none."""
    path = job / SUMMARY_FILE
    if not path.is_file():
        return _NONE, _NONE
    try:
        arms = read_summary(path).arms
    except ValueError:  # the other jobs are shown all the same
        return _DAMAGED, _DAMAGED
    return str(arms[0].exact), str(arms[-1].exact)


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = aligned(rows)
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
