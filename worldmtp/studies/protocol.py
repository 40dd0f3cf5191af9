"""What a study is: several models trained and measured alike, and one summary of what they found.

A study is made as ``Class(config)``, where ``config`` is a frozen dataclass and ``Class.config_class`` its type, and
can be pickled: its arms may run in processes of their own. ``worldmtp.studies.runner`` runs one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

Report = Callable[[float, str], None]
"""Called with how far the work is, in [0, 1], and a note."""

_FILE_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Arm:
    """One model of a study: a variant's name, which is part of a file's name, and a seed."""

    name: str
    seed: int

    def __post_init__(self) -> None:
        if not _FILE_SAFE.fullmatch(self.name):
            raise ValueError(
                f"the arm {self.name!r} names a file; use letters, digits, '_', '-' and '.', a letter or digit first."
            )

    @property
    def label(self) -> str:
        """The name of the arm's files, without their endings."""
        return f"{self.name}_seed{self.seed}"


@dataclass(frozen=True)
class StudySummary:
    """What a study found.

    Attributes:
        title: of tables and figures.
        markdown: the findings as text.
        headline: the one number that a sweep over studies compares.
        figure: a PNG.
    """

    title: str
    markdown: str
    headline: float
    figure: bytes | None


@runtime_checkable
class Study(Protocol):
    """Arms that share their preparation; see the module."""

    def arms(self) -> list[Arm]:
        """All arms, in the order of their results; no two alike."""
        ...

    def prepare(self, directory: Path, report: Report) -> None:
        """Leave in ``directory`` what all arms need, each file whole; done once, harmless to repeat."""
        ...

    def run_arm(self, arm: Arm, directory: Path, report: Report) -> dict[str, Any]:
        """Train and measure one arm on what was prepared in ``directory``; the result is fit for JSON."""
        ...

    def summarize(self, results: list[dict[str, Any]]) -> StudySummary:
        """The results of all arms, as they were read back from JSON, summarised."""
        ...
