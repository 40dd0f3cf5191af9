"""Attention of one evaluation on disk: sums of each pattern, and whole maps of the first texts for the gallery.

    <run>/sft/attention/step_<optimiser steps>.npz   evaluations during the warm start
    <run>/attention/step_<environment tokens>.npz    those of the run

One file each, written whole or not at all, without pickle.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from worldmtp.analysis.artefacts import ArtefactError, opened_arrays, write_arrays
from worldmtp.analysis.attention_patterns import PATTERNS, AttendedTexts, PatternSums

ATTENTION_DIRECTORY = "attention"
FORMAT_VERSION = 1
MAX_MAP_NUMBERS = 2_000_000
"""Weights that a file keeps as maps; of larger models fewer texts, or none."""
_NAME = re.compile(r"step_(\d+)\.npz")


@dataclass(frozen=True)
class AttentionMaps:
    """Whole maps of some texts: ``maps`` is half precision, ``tokens`` the text of each token."""

    maps: Float[np.ndarray, "row layer head query length"]
    tokens: np.ndarray
    queries: Int[np.ndarray, "row query"]
    query_mask: Bool[np.ndarray, "row query"]
    lengths: Int[np.ndarray, " row"]
    prompt_length: Int[np.ndarray, " row"]

    def __len__(self) -> int:
        return len(self.maps)

    @classmethod
    def of(
        cls,
        attention: Float[np.ndarray, "batch layer head query length"],
        texts: AttendedTexts,
        tokens_text: Sequence[str],
        num_rows: int,
    ) -> "AttentionMaps":
        """Return the maps of the first texts, of as many as ``MAX_MAP_NUMBERS`` has room for and no more than asked."""
        number = min(num_rows, len(attention), MAX_MAP_NUMBERS // max(1, attention[:1].size))
        rows = slice(number)
        return cls(
            maps=attention[rows].astype(np.float16),
            tokens=np.array(tokens_text, dtype=np.str_)[texts.input_ids[rows]],
            queries=texts.queries[rows],
            query_mask=texts.query_mask[rows],
            lengths=texts.attention_mask[rows].sum(axis=1),
            prompt_length=texts.prompt_length[rows],
        )


@dataclass(frozen=True)
class AttentionRecord:
    """One evaluation's attention at ``step``; ``floor`` is what a head gets that looks at all keys alike."""

    step: int
    sums: PatternSums
    floor: Float[np.ndarray, " pattern"]
    gallery: AttentionMaps

    def strongest(self, pattern: str) -> tuple[int, int] | None:
        """Return layer and head with the largest mean mass, of entropy the smallest; None where no text has it."""
        mean = self.sums.mean()[PATTERNS.index(pattern)]
        if np.isnan(mean).any():
            return None
        place = int(mean.argmin() if pattern == "entropy" else mean.argmax())
        return place // mean.shape[1], place % mean.shape[1]


@dataclass(frozen=True)
class AttentionHistory:
    """Evaluations in order: of the warm start by its steps, and of the run by its own."""

    warm_start: tuple[AttentionRecord, ...] = ()
    run: tuple[AttentionRecord, ...] = ()

    @property
    def records(self) -> tuple[AttentionRecord, ...]:
        """Return all of them, from first to last."""
        return self.warm_start + self.run


def save_attention(record: AttentionRecord, directory: Path) -> Path:
    """Write one evaluation into ``<directory>/attention`` and return its path."""
    arrays = {field.name: getattr(record.gallery, field.name) for field in fields(AttentionMaps)}
    arrays |= {"total": record.sums.total.astype(np.float32), "count": record.sums.count, "floor": record.floor}
    arrays |= {"format_version": np.array(FORMAT_VERSION), "patterns": np.array(PATTERNS)}
    path = directory / ATTENTION_DIRECTORY / f"step_{record.step:012d}.npz"
    write_arrays(path, arrays)
    return path


def load_attention(path: Path) -> AttentionRecord:
    """Read one evaluation.

    Raises:
        ArtefactError: the file is damaged, or of another version.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ArtefactError(f"{path} is not named step_<number>.npz; it was not written by save_attention.")
    with opened_arrays(path) as archive:
        arrays = dict(archive)
    version = arrays.get("format_version")
    if version is None or int(version) != FORMAT_VERSION or tuple(arrays["patterns"]) != PATTERNS:
        raise ArtefactError(f"{path} was written by another version of worldmtp; run the evaluation again.")
    return AttentionRecord(
        step=int(match.group(1)),
        sums=PatternSums(total=arrays["total"].astype(np.float64), count=arrays["count"]),
        floor=arrays["floor"],
        gallery=AttentionMaps(**{field.name: arrays[field.name] for field in fields(AttentionMaps)}),
    )


def load_history(run_dir: Path, warm_start_directory: str, problems: list[str]) -> AttentionHistory:
    """Read all evaluations of a run; a file that cannot be read is named in ``problems``, a sentence each."""

    def read(directory: Path) -> tuple[AttentionRecord, ...]:
        found = []
        for path in sorted((directory / ATTENTION_DIRECTORY).glob("step_*.npz")):
            try:
                found.append(load_attention(path))
            except ArtefactError as error:
                problems.append(f"Attention cannot be read: {error}")
        return tuple(found)

    return AttentionHistory(read(run_dir / warm_start_directory), read(run_dir))
