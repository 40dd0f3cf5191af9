"""DataTask: questions from a file, and a reward by its dotted path.

Splits are by the hash of the prompt, as everywhere: columns or parts that name a split are not asked, so that a prompt
that stands in the file twice cannot be in both. A split of the file's author is kept by two environments, one a part.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from worldmtp.choices import did_you_mean
from worldmtp.envs.task import Example, Score
from worldmtp.envs.tasks.rewards import RewardFunction, load_reward, reward_score
from worldmtp.envs.tasks.rows import Row, as_text, read_rows


class DataTask:
    """Rows of a file; each is as likely as any other, so a prompt that stands there twice comes twice as often.

    Args:
        path: a .jsonl, .csv or .parquet file, or a directory that ``datasets`` saved.
        reward: "<module>:<function>", or a function: ``(example, text) -> float | Score``. Without one a text is worth
            1 if it is the answer, else 0. The other columns of the row are ``example.meta``.
        prompt: the column of the prompts.
        answer: the column of the answers, texts or numbers; None where there is none, for which a reward is needed.
        part: of a directory that holds several datasets, such as "train".
        separator: appended to each prompt.
        probe_bound: the largest mean value that content-free text may earn from the reward.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read, a column is missing, a prompt or an answer is empty or neither
            text nor number, or the reward cannot be imported.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        reward: str | RewardFunction | None = None,
        *,
        prompt: str = "prompt",
        answer: str | None = "answer",
        part: str | None = None,
        separator: str = "",
        probe_bound: float = 0.0,
    ) -> None:
        if path is None:
            raise ValueError('a task from data needs a file: task_kwargs={"path": "questions.jsonl"}.')
        if reward is None and answer is None:
            raise ValueError("without answers there is nothing to match; give a reward, '<module>:<function>'.")
        self.path, self.probe_bound = str(path), probe_bound
        self._reward = None if reward is None else load_reward(reward)
        rows = read_rows(path, part)
        columns = list(dict.fromkeys(column for row in rows for column in row))
        _check_column("prompt", prompt, columns, self.path)
        if answer is not None:
            _check_column("answer", answer, columns, self.path)
        self._examples = [
            self._example(index, row, prompt, answer, separator) for index, row in enumerate(rows, start=1)
        ]
        self.universe_size = len({example.prompt for example in self._examples})

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        """A row."""
        return self._examples[int(rng.integers(len(self._examples)))]

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """What the reward says, or whether the text is the answer."""
        if self._reward is not None:
            return reward_score(self._reward, example, text)
        exact = example.answer is not None and text == example.answer.strip()
        return Score(value=float(exact), exact=exact)

    def _example(self, number: int, row: Row, prompt: str, answer: str | None, separator: str) -> Example:
        texts: list[str | None] = []
        for column in (prompt, answer):
            value = None if column is None else row.get(column)
            text = as_text(value)
            is_optional = column is None or (column == answer and self._reward is not None)
            if text is None and not (value is None and is_optional):
                raise ValueError(
                    f"{self.path!r}, row {number}: {column} is {value!r} of type {type(value).__name__}; expected text "
                    'or a number. Write it as the text that is meant, such as "true".'
                )
            texts.append(text)
        question = texts[0]
        if not question or not question.strip():
            raise ValueError(f"{self.path!r}, row {number}: {prompt} is empty; a policy needs something to answer to.")
        if self._reward is None and texts[1] is not None and not texts[1].strip():
            raise ValueError(
                f"{self.path!r}, row {number}: {answer} is empty, so that saying nothing would be right; leave the row "
                "out, or give a reward."
            )
        meta = {column: value for column, value in row.items() if column not in (prompt, answer)}
        return Example(prompt=question + separator, answer=texts[1], meta=meta)


def _check_column(argument: str, column: str, columns: Sequence[str], path: str) -> None:
    if column in columns:
        return
    raise ValueError(
        f"{path!r} has no column {column!r}{did_you_mean(column, columns)} "
        f"Its columns: {list(columns)}; name the right one with {argument}=..."
        + (", or answer=None and a reward." if argument == "answer" else ".")
    )
