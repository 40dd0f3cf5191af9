"""What a study is, and studies by name: several models trained and measured alike, and one summary of the findings.

A study is made as ``Class(config)``, where ``config`` is a frozen dataclass and ``Class.config_class`` its type. It can
be pickled, since its arms may run in processes of their own. ``worldmtp.studies.runner`` runs one.

A study that is not listed here is named by its entry point, ``my_module:MyStudy``. Its module is imported when it is
made.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from worldmtp.choices import check_choice, checked_fields
from worldmtp.lazy import import_name

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
        """Return the name of the arm's files, without their endings."""
        return f"{self.name}_seed{self.seed}"


@dataclass(frozen=True)
class StudySummary:
    """The findings of a study; ``headline`` is the number that a sweep over studies compares, ``figure`` a PNG."""

    title: str
    markdown: str
    headline: float
    figure: bytes | None


@runtime_checkable
class Study(Protocol):
    """Arms that share their preparation, and their summary."""

    def arms(self) -> list[Arm]:
        """Return all arms, in the order of their results; no two alike."""
        ...

    def prepare(self, directory: Path, report: Report) -> None:
        """Write what all arms need to ``directory``, each file whole; called once or more."""
        ...

    def run_arm(self, arm: Arm, directory: Path, report: Report) -> dict[str, Any]:
        """Train and measure one arm on what was prepared in ``directory``; return a result fit for JSON."""
        ...

    def summarize(self, results: list[dict[str, Any]]) -> StudySummary:
        """Summarise the results of all arms, as read back from JSON."""
        ...


STUDIES: dict[str, str] = {
    "cross_modal": "worldmtp.studies.cross_modal:CrossModal",
    "densification": "worldmtp.studies.densification:Densification",
    "head_families": "worldmtp.studies.head_families:HeadFamilies",
    "path_star": "worldmtp.studies.path_star:PathStarStudy",
}
"""Entry points by name."""


def make_study(name: str, values: Mapping[str, Any]) -> Study:
    """Return the study of that name, its config made of plain ``values``; what is left out has its default.

    Raises:
        ValueError: an unknown study or field (the nearest is suggested), one that is missing, a value out of range, or
            an entry point that cannot be imported.
        TypeError: a value is of the wrong type, or the class has no ``config_class``.
    """
    if ":" not in name:
        check_choice("study", name, STUDIES)
    family = import_name(STUDIES.get(name, name), f"study={name!r}")
    if not is_dataclass(getattr(family, "config_class", None)):
        raise TypeError(f"study={name!r} is {family!r}, without a config_class; that is a frozen dataclass.")
    checked = checked_fields(family.config_class, values, f"study {name}", "study")
    try:
        config = family.config_class(**checked)
    except ValueError as error:
        raise ValueError(f"study {name}: {error}") from error
    study = family(config)
    assert isinstance(study, Study)
    return study
