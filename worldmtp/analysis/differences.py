"""Evaluations paired by their prompts, and a quantity of two runs with its difference and interval."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from worldmtp.analysis.artefacts import EvalArtefact
from worldmtp.statistics import Interval


@dataclass(frozen=True)
class Difference:
    """A quantity in both runs, and the second less the first with its interval over prompts."""

    quantity: str
    first: float
    second: float
    difference: Interval

    @property
    def verdict(self) -> str:
        """Return which way it went, where the interval excludes 0."""
        if self.difference.low > 0:
            return "higher"
        return "lower" if self.difference.high < 0 else "not told apart"

    def cells(self) -> tuple[str, ...]:
        """Return a row of a table."""
        return self.quantity, f"{self.first:.3f}", f"{self.second:.3f}", str(self.difference), self.verdict


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table as lines whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def paired_rows(*evaluations: EvalArtefact) -> Int[np.ndarray, "pair evaluation"]:
    """Return rows of all that answer the same prompt, in the order of the first; a repeated prompt pairs in order."""
    places = []
    for artefact in evaluations:
        seen: Counter[str] = Counter()
        of_prompt = {}
        for row in range(len(artefact)):
            prompt = prompt_of(artefact, row)
            of_prompt[prompt, seen[prompt]] = row
            seen[prompt] += 1
        places.append(of_prompt)
    found = [[rows[key] for rows in places] for key in places[0] if all(key in rows for rows in places)]
    return np.array(found, dtype=np.int64).reshape(-1, len(evaluations))


def prompt_of(artefact: EvalArtefact, row: int) -> str:
    """Return the text of a row's prompt."""
    return text_of(artefact, row, 0, int(artefact.prompt_length[row]))


def text_of(artefact: EvalArtefact, row: int, start: int, end: int) -> str:
    """Return the text of some of a row's tokens."""
    return "".join(artefact.tokens_text[token] for token in artefact.input_ids[row, start:end])
