"""Scenes: what was predicted and imagined of a few held-out texts, at each evaluation; the Imagination tab shows them.

``imagination.jsonl`` in a run directory has a line an evaluation: its step, and its scenes. Everything stands at the
place of the token that it speaks of, as in a token strip, and with it the likeliest tokens and their probabilities.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worldmtp.atomic_files import write_text
from worldmtp.tracking.writers import read_records

SCENES_FILE = "imagination.jsonl"
_DIGITS = 4
"""Of a probability or a return: what a tab can show."""


@dataclass(frozen=True)
class Guess:
    """What was said of one token.

    Attributes:
        top: the likeliest tokens, most likely first, with their probabilities.
        realized: the probability q of the token that came; None where that was not read.
        accept: min(1, q / p), the chance that speculative decoding keeps the token, p being the trunk's probability.
    """

    top: tuple[tuple[str, float], ...]
    realized: float | None = None
    accept: float | None = None


@dataclass(frozen=True)
class SceneRow:
    """Guesses that belong together; entry i speaks of token i, None where nothing was said of it.

    ``root`` is the last token that all guesses of a row had seen; None where each was made from a place of its own.
    """

    label: str
    guesses: tuple[Guess | None, ...]
    root: int | None = None


@dataclass(frozen=True)
class Scene:
    """A realized text, prompt first, and what was said of it.

    Attributes:
        tokens: the text, as it was.
        prompt_length: how many of them are the prompt.
        replies: the places behind it that the world wrote.
        total: the return of the episode.
        exact: whether the scorer called the answer exactly right.
        predicted: a row for each depth: what it said of token i at i - k, having read the real tokens before.
        imagined: a row for each place acted in: the likeliest continuation, each token read as it was imagined.
        imagined_return: what was imagined to follow the prefix that ends with token i; None where nothing was.
        realized_return: what followed it.
    """

    tokens: tuple[str, ...]
    prompt_length: int
    replies: tuple[int, ...]
    total: float
    exact: bool
    predicted: tuple[SceneRow, ...]
    imagined: tuple[SceneRow, ...]
    imagined_return: tuple[float | None, ...]
    realized_return: tuple[float | None, ...]

    def __post_init__(self) -> None:
        rows = {row.label: len(row.guesses) for row in (*self.predicted, *self.imagined)}
        rows |= {"imagined_return": len(self.imagined_return), "realized_return": len(self.realized_return)}
        for label, length in rows.items():
            if length != len(self.tokens):
                raise ValueError(
                    f"Row {label!r} has {length} entries for a text of {len(self.tokens)} tokens; align every row by "
                    "target, None where nothing was said."
                )


class SceneLog:
    """Appends scenes to ``imagination.jsonl``; like the writers of metrics it can be put back to a step."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / SCENES_FILE

    def write(self, scenes: Sequence[Scene], step: int) -> None:
        """Write one line; without scenes none."""
        if not scenes:
            return
        line = json.dumps({"step": step, "scenes": [_plain(asdict(scene)) for scene in scenes]}, allow_nan=False)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def resume_at(self, step: int) -> None:
        """Drop the lines after ``step``, and one that was cut by a kill; -1 drops all.

        Raises:
            ValueError: a line before the last is not JSON.
        """
        if self._path.exists():
            kept = [record for record in read_records(self._path) if record["step"] <= step]
            write_text(self._path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in kept))


def overview(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the steps of a run and, by prompt, how agreement and returns went over them.

    ``agreement`` is the share of tokens of which the depths from 2 on held the one that came most likely (depth 1 where
    there is no other); ``imagined`` the imagined return at the first place acted in, ``realized`` what came of it. None
    is "not there".
    """
    prompts = []
    for place in range(min((len(record["scenes"]) for record in records), default=0)):
        scenes = [record["scenes"][place] for record in records]
        first = scenes[0]
        roots = [scene["prompt_length"] - 1 for scene in scenes]
        prompts.append(
            {
                "text": "".join(first["tokens"][: first["prompt_length"]]),
                "agreement": [_agreement(scene) for scene in scenes],
                "imagined": [_at(scene["imagined_return"], root) for scene, root in zip(scenes, roots, strict=True)],
                "realized": [_at(scene["realized_return"], root) for scene, root in zip(scenes, roots, strict=True)],
            }
        )
    return {"steps": [record["step"] for record in records], "prompts": prompts}


def _agreement(scene: dict[str, Any]) -> float | None:
    rows = scene["predicted"][1:] or scene["predicted"]
    agrees = [
        guess["top"][0][0] == token
        for row in rows
        for guess, token in zip(row["guesses"], scene["tokens"], strict=True)
        if guess is not None
    ]
    return round(sum(agrees) / len(agrees), _DIGITS) if agrees else None


def _at(values: Sequence[float | None], place: int) -> float | None:
    return values[place] if 0 <= place < len(values) else None


def _plain(value: Any) -> Any:
    """Return a value for JSON, numbers rounded to what can be seen."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return round(value, _DIGITS) if isinstance(value, float) else value
