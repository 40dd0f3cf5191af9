"""What a row of the table of tags is, and how a tag is checked against the table.

A row's tag may hold placeholders: ``{k}``, ``{h}`` and ``{i}`` stand for a whole number (depth, horizon, rung), every
other for a word such as ``spell_backward``.
"""

import functools
import re
from dataclasses import dataclass
from typing import Literal

from worldmtp.choices import nearest

Kind = Literal["scalar", "text", "image", "histogram"]

_NUMBERS = ("k", "h", "i")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class TagRow:
    """One documented tag, or family of tags."""

    tag: str
    estimator: str
    unit: str
    kind: Kind = "scalar"

    def matches(self, tag: str, kind: Kind) -> bool:
        """Return whether this row documents ``tag``."""
        return kind == self.kind and _pattern(self.tag).fullmatch(tag) is not None


def scalar_rows(prefix: str, *rows: tuple[str, str, str]) -> tuple[TagRow, ...]:
    """Return rows of scalars below one prefix, each given as tag, estimator and unit."""
    return tuple(TagRow(f"{prefix}/{tag}", estimator, unit) for tag, estimator, unit in rows)


@dataclass(frozen=True)
class TagTable:
    """Rows that tags are checked against."""

    rows: tuple[TagRow, ...]

    def check(self, tag: str, kind: Kind) -> None:
        """Raise if the table does not document the tag.

        Raises:
            ValueError: no row matches; the message gives the nearest.
        """
        self.row(tag, kind)

    def row(self, tag: str, kind: Kind) -> TagRow:
        """Return the row that documents the tag, the first where several match.

        Raises:
            ValueError: no row matches; the message gives the nearest.
        """
        found = _find(self, tag, kind)
        if found is None:
            candidates = [row.tag for row in self.rows if row.kind == kind]
            generic = re.sub(r"(?<=_)\d+|(?<=_h)\d+", "{k}", tag)
            near = nearest(generic, candidates, cutoff=0.0)
            hint = f" Did you mean {near!r}?" if near else ""
            raise ValueError(
                f"No {kind} tag {tag!r} in the table of metrics.{hint} "
                "Log one of the documented tags (docs/metrics.md), or your own as custom/<name>."
            )
        return found


# One entry per row and kind of a table; bounded because texts of users could be tags.
@functools.lru_cache(maxsize=4096)
def _find(table: TagTable, tag: str, kind: Kind) -> TagRow | None:
    return next((row for row in table.rows if row.matches(tag, kind)), None)


@functools.lru_cache(maxsize=1024)
def _pattern(tag: str) -> re.Pattern[str]:
    # re.split with a group: literals at even places, names of placeholders at odd ones.
    parts = _PLACEHOLDER.split(tag)
    return re.compile(
        "".join(
            re.escape(part) if place % 2 == 0 else r"\d+" if part in _NUMBERS else r"[A-Za-z0-9_.-]+"
            for place, part in enumerate(parts)
        )
    )
