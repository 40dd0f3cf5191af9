"""CorpusTask: go on with real text. A prompt is a window of a file, the answer what follows in it.

Split twice, and both are needed. Windows of one file overlap, so the hash of a prompt alone would leak: nine tenths of
a held-out window would stand in a training window. So a file is on one side only, by the hash of its content (copies of
a file stay together, wherever they lie), and ``sample`` draws from the files of the split it is asked for. The hash of
the prompt then decides as for every task: of the training files' windows those of held-out hashes are never drawn, and
of the held-out files' windows those of training hashes. So a line that stands in two files, such as a licence, cannot
be a prompt of both splits either. Not looked for: text that two files share at different offsets.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from worldmtp.envs.dataset import check_split
from worldmtp.envs.task import Example, Score
from worldmtp.envs.tasks.corpus_files import STDLIB, Side, find_files, read_sides
from worldmtp.envs.tasks.matching import position_match
from worldmtp.envs.tasks.rewards import RewardFunction, load_reward, reward_score

_MAX_TRIES = 10_000


class CorpusTask:
    """Windows of text files, each place as likely as any other.

    An answer begins and ends with a character that is no blank, since texts are stripped before they are scored.

    Args:
        files: "stdlib", the Python standard library's own sources; or paths and patterns such as ``"texts/*.txt"``,
            of UTF-8 files.
        prompt_chars: characters of a prompt.
        answer_chars: characters of an answer.
        reward: "<module>:<function>", or a function: ``(example, text) -> float | Score``. Without one a text is worth
            the share of positions at which it has the right character.
        alphabet: characters that a window may have; None allows all. A tokenizer's alphabet, where it has one.
        heldout_files: share of the files that is held out.
        probe_bound: the largest mean value that content-free text may earn.

    Raises:
        ValueError: if a number is out of range, or there is no file.
    """

    def __init__(
        self,
        files: str | Sequence[str] = STDLIB,
        prompt_chars: int = 32,
        answer_chars: int = 8,
        reward: str | RewardFunction | None = None,
        alphabet: str | None = None,
        heldout_files: float = 0.2,
        probe_bound: float = 0.1,
    ) -> None:
        if prompt_chars < 1 or answer_chars < 1 or not 0.0 < heldout_files < 1.0:
            raise ValueError(
                f"expected prompt_chars and answer_chars of at least 1 and heldout_files inside (0, 1), got "
                f"{prompt_chars}, {answer_chars} and {heldout_files}."
            )
        self.prompt_chars, self.answer_chars, self.probe_bound = prompt_chars, answer_chars, probe_bound
        self.heldout_files = heldout_files
        self._alphabet = None if alphabet is None else frozenset(alphabet)
        self._reward = None if reward is None else load_reward(reward)
        self._files = find_files(files)
        self._sides: dict[str, Side] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the texts: scoring needs none, and a scoring process is sent none."""
        return {**self.__dict__, "_sides": None}

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        """A window of a file of the split.

        Raises:
            ValueError: if a file is not UTF-8, the split has no file that is long enough, or hardly any window has only
                characters of the alphabet.
        """
        width = self.prompt_chars + self.answer_chars
        if self._sides is None:
            self._sides = read_sides(self._files, width, self.heldout_files)
        side = self._sides[check_split(split)]
        for _ in range(_MAX_TRIES):
            index, start = side.place(int(rng.integers(side.num_windows)))
            window = side.texts[index][start : start + width]
            answer = window[self.prompt_chars :]
            if answer == answer.strip() and (self._alphabet is None or self._alphabet.issuperset(window)):
                meta = {"file": side.names[index], "start": start}
                return Example(prompt=window[: self.prompt_chars], answer=answer, meta=meta)
        raise ValueError(
            f"{_MAX_TRIES} windows of {width} characters of {len(self._files)} files had a character outside "
            "the alphabet, or an answer that begins or ends with a blank; widen the alphabet or shorten the windows."
        )

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """What the reward says, or the share of right positions."""
        if self._reward is not None:
            return reward_score(self._reward, example, text)
        match = position_match(example.answer or "", text)
        return Score(value=match, components={"position_match": match}, exact=text == example.answer)
