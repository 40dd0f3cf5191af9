"""CorpusTask: go on with real text. A prompt is a window of a file, the answer what follows in it.

Split twice, and both are needed. Windows of one file overlap, so the hash of a prompt alone would leak: nine tenths of
a held-out window would stand in a training window. So a file is on one side only, by the hash of its content (copies of
a file stay together, wherever they lie), and ``sample`` draws from the files of the split it is asked for. The hash of
the prompt then decides as for every task: of the training files' windows those of held-out hashes are never drawn, and
of the held-out files' windows those of training hashes. So a line that stands in two files, such as a licence, cannot
be a prompt of both splits either. Not looked for: text that two files share at different offsets.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from worldmtp.envs.rubric import load_reward, reward_score
from worldmtp.envs.splits import SPLITS, check_split, split_of, splitting_share
from worldmtp.envs.task import Example, RewardSpec, Score
from worldmtp.envs.tasks.strings import position_match
from worldmtp.stdlib_sources import stdlib_files, stdlib_root

STDLIB = "stdlib"

NamedFile = tuple[str, Path]


@dataclass(frozen=True)
class Side:
    """Files of one split. ``ends`` is the running sum of the places in them."""

    names: list[str]
    texts: list[str]
    ends: Int64[np.ndarray, " file"]

    @property
    def num_windows(self) -> int:
        """Places in all files."""
        return int(self.ends[-1])

    def place(self, window: int) -> tuple[int, int]:
        """The file of a window and where it starts in it; windows are counted through all files."""
        index = int(np.searchsorted(self.ends, window, side="right"))
        return index, window - (int(self.ends[index - 1]) if index else 0)


def find_files(files: str | Sequence[str]) -> tuple[NamedFile, ...]:
    """Names to be shown, and where the files are: each file once, sorted by name.

    Raises:
        ValueError: if a path or a pattern names no file.
    """
    if files == STDLIB:
        root = stdlib_root()
        return tuple((path.as_posix(), root / path) for path in stdlib_files(root))
    found: set[Path] = set()
    for pattern in [files] if isinstance(files, str) else files:
        path = Path(pattern)
        anchor = Path(path.anchor)
        matches = [path] if path.is_file() else anchor.glob(str(path.relative_to(anchor)))
        named = [match for match in matches if match.is_file()]
        if not named:
            raise ValueError(f"files={pattern!r} names no file (from {str(Path.cwd())!r}); or say {STDLIB!r}.")
        found.update(named)
    return tuple((path.as_posix(), path) for path in sorted(found, key=lambda path: path.as_posix()))


@lru_cache(maxsize=4)
def read_sides(files: tuple[NamedFile, ...], width: int, heldout_fraction: float) -> dict[str, Side]:
    """The files by split, decided by the hash of their content; those without room for a window are left out.

    Kept for the next environment on the same files, since reading the standard library takes a second.

    Raises:
        ValueError: if a file is not UTF-8, or a split has no file.
    """
    read: list[tuple[str, str, str]] = []
    for name, path in files:
        content = path.read_bytes()
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"the file {name!r} is not UTF-8: {error}.") from error
        if len(text) >= width:
            # the prefix keeps this hash apart from that of a prompt
            key = hashlib.blake2b(b"corpus file\0" + content, digest_size=8).hexdigest()
            read.append((key, name, text))
    share = splitting_share([key for key, _, _ in read], heldout_fraction)
    sides: dict[str, Side] = {}
    for split in SPLITS:
        chosen = [(name, text) for key, name, text in read if split_of(key, share) == split]
        if not chosen:
            raise ValueError(
                f"{len(read)} of {len(files)} files have {width} characters or more, and heldout_files="
                f"{heldout_fraction} leaves none in {split!r}: give more files, shorter windows, or a share above zero."
            )
        ends = np.cumsum([len(text) - width + 1 for _, text in chosen], dtype=np.int64)
        sides[split] = Side([name for name, _ in chosen], [text for _, text in chosen], ends)
    return sides


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
        heldout_files: share of the files that is held out; of few, the nearest that leaves some on either side.
        probe_bound: the largest mean value that content-free text may earn.

    Raises:
        ValueError: if a number is out of range, or there is no file.
    """

    def __init__(
        self,
        files: str | Sequence[str] = STDLIB,
        prompt_chars: int = 32,
        answer_chars: int = 8,
        reward: RewardSpec | None = None,
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
