"""The files of a corpus: which they are, on which side of the split, and the places in them where a window fits."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from worldmtp.envs.dataset import SPLITS, split_of
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
    sides: dict[str, tuple[list[str], list[str]]] = {split: ([], []) for split in SPLITS}
    for name, path in files:
        content = path.read_bytes()
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"the file {name!r} is not UTF-8: {error}.") from error
        if len(text) >= width:
            # the prefix keeps this hash apart from that of a prompt
            key = hashlib.blake2b(b"corpus file\0" + content, digest_size=8).hexdigest()
            names, texts = sides[split_of(key, heldout_fraction)]
            names.append(name)
            texts.append(text)
    for split, (names, _) in sides.items():
        if not names:
            raise ValueError(
                f"none of {len(files)} files with {width} characters or more is in {split!r}: give more files, shorter "
                f"windows, or another heldout_files than {heldout_fraction}."
            )
    return {
        split: Side(names, texts, np.cumsum([len(text) - width + 1 for text in texts], dtype=np.int64))
        for split, (names, texts) in sides.items()
    }
