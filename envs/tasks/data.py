"""Examples from a file of prompts, with or without answers; a reward of the user's own, if there is one.

Splits are by the hash of the prompt, as everywhere: columns or parts that name a split are not asked, so that a prompt
that stands in the file twice cannot be in both. A split of the file's author is kept by two environments, one a part.

A file is JSONL, CSV, Parquet, what ``datasets`` saved to disk, or a data set on the Hub. Text files are UTF-8, with or
without the byte order mark that spreadsheets and Windows editors put in front. They are read here and not by
``datasets``, which gives each column one type: the answer 4 beside 4.50 would be 4.0, the answer 007 would be 7, and NA
would be missing.
"""

import csv
import decimal
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from worldmtp.choices import did_you_mean, env_settings, nearest
from worldmtp.envs.rubric import exact_match, load_reward, reward_score
from worldmtp.envs.task import Example, RewardSpec, Score

SUFFIXES = (".jsonl", ".csv", ".parquet")

Row = dict[str, Any]

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class WrittenFloat(float):
    """A float of a JSON file that remembers how it was written: the answer 4.50 is the text "4.50"."""

    text: str

    def __new__(cls, text: str) -> "WrittenFloat":
        """Read a number's text."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __reduce__(self) -> tuple[type["WrittenFloat"], tuple[str]]:
        return WrittenFloat, (self.text,)


def as_text(value: Any) -> str | None:
    """Return a cell as text: a text as it is, a number as it is written, and None for anything else.

    True and false are left out, since files spell them in too many ways for one to be the answer.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, WrittenFloat):
        return value.text
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else None
    if isinstance(value, bool):
        return None
    return str(value) if isinstance(value, (int, decimal.Decimal)) else None


def read_rows(path: str | Path, part: str | None = None, subset: str | None = None) -> list[Row]:
    """Return all rows, in the order of the file.

    Args:
        path: a file, whose suffix says how it is read, a directory written by ``save_to_disk``, or, where there is
            neither, the name of a data set on the Hub, "<owner>/<name>".
        part: which part of a directory or of a data set that holds several, such as "train".
        subset: which subset of a data set on the Hub that has several.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        ValueError: if the suffix is unknown, a text file is not UTF-8, a line is no JSON object or has other fields
            than the header, the part is missing or unknown, the Hub cannot be reached or has no such data set, or
            there are no rows.
    """
    name, path = str(path), Path(path)
    is_on_hub = not path.exists() and _HUB_NAME.fullmatch(name) and path.suffix not in SUFFIXES
    if not path.exists() and not is_on_hub:
        raise FileNotFoundError(f"path={str(path)!r}: no such file or directory (from {str(Path.cwd())!r}).")
    if subset is not None and not is_on_hub:
        raise ValueError(f"subset={subset!r} chooses in a data set on the Hub, and {name!r} is here; leave it out.")
    if is_on_hub:
        rows = _hub_dataset(name, part, subset)
    elif path.is_dir():
        rows = _saved_dataset(path, part)
    elif part is not None:
        raise ValueError(
            f"part={part!r} chooses in a directory of datasets, and {str(path)!r} is a file; leave it out."
        )
    elif path.suffix in (".jsonl", ".csv"):
        try:
            rows = _jsonl(path) if path.suffix == ".jsonl" else _csv(path)
        except UnicodeDecodeError as error:
            raise ValueError(f"{str(path)!r} is not UTF-8: {error}; save it as UTF-8.") from error
    elif path.suffix == ".parquet":
        from pyarrow import parquet

        rows = parquet.read_table(path).to_pylist()
    else:
        raise ValueError(
            f"path={str(path)!r} ends in {path.suffix!r}; expected one of {SUFFIXES}, or a directory that datasets "
            "saved with save_to_disk."
        )
    if not rows:
        raise ValueError(f"{str(path)!r} has no rows; a task needs at least one.")
    return rows


def _jsonl(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_float=WrittenFloat)
        except json.JSONDecodeError as error:
            raise ValueError(f"{str(path)!r}, line {number}: {error}; each line must be a JSON object.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{str(path)!r}, line {number}: a JSON {type(row).__name__}; each line must be an object.")
        rows.append(row)
    return rows


def _csv(path: Path) -> list[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        rows = []
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"not the {len(reader.fieldnames or ())} fields of the header {reader.fieldnames}")
                rows.append(dict(row))
        except UnicodeDecodeError:
            raise  # a ValueError, which is not about a line
        except (csv.Error, ValueError) as error:
            raise ValueError(
                f"{str(path)!r}, line {reader.line_num}: {error}; put quotes around a field with commas or quotes."
            ) from error
    return rows


def _saved_dataset(path: Path, part: str | None) -> list[Row]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except FileNotFoundError as error:
        raise ValueError(f"path={str(path)!r} is a directory that datasets did not save: {error}") from error
    if isinstance(saved, datasets.DatasetDict):
        return _rows_of_part(saved, part, str(path))
    if part is not None:
        raise ValueError(f"part={part!r}: {str(path)!r} holds a single dataset; leave it out.")
    return list(saved)


def _hub_dataset(name: str, part: str | None, subset: str | None) -> list[Row]:
    import datasets

    try:
        with _without_progress_bars():
            parts = datasets.load_dataset(name, name=subset)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise ValueError(
            f"path={name!r} is no file or directory here (from {str(Path.cwd())!r}), and the data set of that name on "
            f"the Hub cannot be loaded: {error}. Check the name and subset=..., and that the Hub can be reached; or "
            "save the data set where it can, with save_to_disk, and give that directory."
        ) from error
    return _rows_of_part(parts, part, name)


def _rows_of_part(parts: Any, part: str | None, place: str) -> list[Row]:
    if part not in parts:
        raise ValueError(f"part={part!r}: {place!r} holds the parts {sorted(parts)}; choose one of them.")
    return list(parts[part])


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    import datasets

    were_shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_shown:
            datasets.enable_progress_bars()


class DataTask:
    """Rows of a file; each is as likely as any other, so a prompt that stands there twice comes twice as often.

    Args:
        path: a .jsonl, .csv or .parquet file, a directory that ``datasets`` saved, or a data set on the Hub,
            "<owner>/<name>".
        reward: "<module>:<function>", a function ``(example, text) -> float | Score``, or a rubric of several, as
            ``load_reward`` reads them. Without one a text is worth 1 if it is the answer, else 0. The other columns of
            the row are ``example.meta``.
        prompt: the column of the prompts.
        answer: the column of the answers, texts or numbers; None where there is none, for which a reward is needed.
        part: of a directory or a data set that has several, such as "train".
        subset: of a data set on the Hub that has several.
        separator: appended to each prompt.
        probe_bound: the largest mean value that content-free text may earn from the reward.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file or the data set cannot be read, a column is missing, a prompt or an answer is empty or
            neither text nor number, or the reward cannot be imported.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        reward: RewardSpec | None = None,
        *,
        prompt: str = "prompt",
        answer: str | None = "answer",
        part: str | None = None,
        subset: str | None = None,
        separator: str = "",
        probe_bound: float = 0.0,
    ) -> None:
        if path is None:
            raise ValueError(f"a task from data needs a file: {env_settings({'task_kwargs.path': 'questions.jsonl'})}.")
        if reward is None and answer is None:
            raise ValueError(
                "without answers there is nothing to match; give a reward, '<module>:<function>': "
                f"{env_settings({'task_kwargs.reward': 'my_rewards:score'})}."
            )
        self.path, self.probe_bound = str(path), probe_bound
        self._needs_answers = reward is None
        self._reward = exact_match if reward is None else load_reward(reward)
        rows = read_rows(path, part, subset)
        columns = list(dict.fromkeys(column for row in rows for column in row))
        _check_columns({"prompt": prompt, "answer": answer}, columns, self.path)
        self._examples = [
            self._example(index, row, prompt, answer, separator) for index, row in enumerate(rows, start=1)
        ]
        self.universe_size = len({example.prompt for example in self._examples})

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        """A row."""
        return self._examples[int(rng.integers(len(self._examples)))]

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """Return what the reward says."""
        return reward_score(self._reward, example, text)

    def _example(self, number: int, row: Row, prompt: str, answer: str | None, separator: str) -> Example:
        texts: list[str | None] = []
        for column in (prompt, answer):
            value = None if column is None else row.get(column)
            text = as_text(value)
            is_optional = column is None or (column == answer and not self._needs_answers)
            if column is not None and column not in row and not is_optional:
                raise ValueError(
                    f"{self.path!r}, row {number} has no {column!r}{did_you_mean(column, row)} "
                    f"Its columns: {list(row)}."
                )
            if text is None and not (value is None and is_optional):
                raise ValueError(
                    f"{self.path!r}, row {number}: {column} is {value!r} of type {type(value).__name__}; expected text "
                    'or a number. Write it as the text that is meant, such as "true".'
                )
            texts.append(text)
        question = texts[0]
        if not question or not question.strip():
            raise ValueError(f"{self.path!r}, row {number}: {prompt} is empty; a policy needs something to answer to.")
        if self._needs_answers and texts[1] is not None and not texts[1].strip():
            raise ValueError(
                f"{self.path!r}, row {number}: {answer} is empty, so that saying nothing would be right; leave the row "
                "out, or give a reward."
            )
        meta = {column: value for column, value in row.items() if column not in (prompt, answer)}
        return Example(prompt=question + separator, answer=texts[1], meta=meta)


def _check_columns(named: Mapping[str, str | None], columns: Sequence[str], path: str) -> None:
    """Raise if columns are not there, of all of them at once: ``named`` is what each argument names, None is none."""
    missing = {argument: column for argument, column in named.items() if column is not None and column not in columns}
    if not missing:
        return
    told = " and ".join(f"no column {column!r} ({argument}=)" for argument, column in missing.items())
    unused = [column for column in columns if column not in named.values()]
    near = {argument: nearest(column, unused) for argument, column in missing.items()}
    others = iter([column for column in unused if column not in near.values()])
    meant = {f"task_kwargs.{argument}": column or next(others, None) for argument, column in near.items()}
    cure = f"name the right one, as by {env_settings({name: column for name, column in meant.items() if column})}"
    if "answer" in missing:
        cure += "; or, without answers, answer=None (null on the command line) and a reward"
    raise ValueError(f"{path!r} has {told}. Its columns: {list(columns)}; {cure}.")
