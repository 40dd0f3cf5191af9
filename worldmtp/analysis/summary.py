"""``summary.json``: the closing table of a run, written by the run and read by the report."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worldmtp.atomic_files import write_text
from worldmtp.statistics import Interval

SUMMARY_FILE = "summary.json"
_NOT_MEASURED = "-"


@dataclass(frozen=True)
class ArmSummary:
    """One row: a policy and how it did on held-out prompts. None is "not measured", as of depths that no text reached.

    ``exact`` is of greedy answers, ``exact_sampled`` of the policy as it acts, one sample a prompt. ``acceptance[k-1]``
    is that of depth k; ``artefact`` the name of the saved evaluation behind the row, if any.
    """

    arm: str
    exact: Interval
    acceptance: tuple[float | None, ...] = ()
    imagined_return: float | None = None
    realized_return: float | None = None
    seconds: float | None = None
    artefact: str = ""
    exact_sampled: Interval | None = None


@dataclass(frozen=True)
class RunSummary:
    """All rows, and what the run was done on."""

    arms: tuple[ArmSummary, ...]
    wall_clock_seconds: float
    machine: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([summary_table(self), *self.notes])


def write_summary(summary: RunSummary, run_dir: Path) -> Path:
    """Write ``summary.json`` atomically."""
    target = run_dir / SUMMARY_FILE
    write_text(target, json.dumps(asdict(summary), indent=2, allow_nan=False) + "\n")
    return target


def read_summary(path: Path) -> RunSummary:
    """Return the summary in a file.

    Raises:
        ValueError: the file is not a summary; the message names it and the field.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return RunSummary(
            arms=tuple(_arm(row) for row in content["arms"]),
            wall_clock_seconds=content["wall_clock_seconds"],
            machine=content["machine"],
            notes=tuple(content["notes"]),
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); it is truncated or damaged.") from error
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a summary ({type(error).__name__}: {error}); write it with write_summary."
        ) from error


def summary_table(summary: RunSummary) -> str:
    """Return the rows as aligned plain text, for a terminal."""
    cells = table_cells(summary)
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "  ".join(cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in row).rstrip()
        for row in (enumerate(zip(row, widths, strict=True)) for row in cells)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def table_cells(summary: RunSummary) -> list[list[str]]:
    """Return the titles and a row for each arm, as texts; what was not measured is "-", a column of it left out.

    Depth 1 is the trunk, so that acceptance is told from depth 2 on.
    """
    depths = range(1, max((len(arm.acceptance) for arm in summary.arms), default=0))
    titles = ["arm", "exact match, sampled [90 %]", "greedy [90 %]", *(f"accept d{k + 1}" for k in depths)]
    titles += ["imagined return", "realized return", "seconds"]
    rows = [
        [
            arm.arm,
            _NOT_MEASURED if arm.exact_sampled is None else str(arm.exact_sampled),
            str(arm.exact),
            *(_number(arm.acceptance[k] if k < len(arm.acceptance) else None) for k in depths),
            _number(arm.imagined_return),
            _number(arm.realized_return),
            _number(arm.seconds, 0),
        ]
        for arm in summary.arms
    ]
    kept = [place for place in range(len(titles)) if any(row[place] != _NOT_MEASURED for row in rows)]
    return [[row[place] for place in kept] for row in [titles, *rows]]


def _number(value: float | None, digits: int = 3) -> str:
    return _NOT_MEASURED if value is None else f"{value:.{digits}f}"


def _arm(row: Mapping[str, Any]) -> ArmSummary:
    sampled = row.get("exact_sampled")
    return ArmSummary(
        **{
            **row,
            "exact": Interval(**row["exact"]),
            "exact_sampled": None if sampled is None else Interval(**sampled),
            "acceptance": tuple(row["acceptance"]),
        }
    )
