"""Items that are slow to make, kept on disk: the second process reads what the first one made.

Off unless a directory is named, by the argument or by ``WORLDMTP_CACHE_DIR``, since a program should not fill a disk
unasked. An item is kept under what determines it (the caller's ``identity``, its index), so that it never depends on
whether it was kept. It is written as a Python literal and read by ``ast.literal_eval``, which runs nothing; an item
that does not come back the same, character by character and type by type, is not kept. One file an identity, one line
an item with a checksum: processes append side by side, and a line that was cut short is made anew.
"""

import ast
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CACHE_VARIABLE = "WORLDMTP_CACHE_DIR"
SLOW_SECONDS = 0.005


class ItemCache:
    """Items by index.

    Args:
        directory: where files are kept; None asks ``WORLDMTP_CACHE_DIR``, and keeps nothing where that is unset.
        name: beginning of the file's name.
        identity: what determines the items, all of it, such as versions and options.
        slow_seconds: items that took less are not kept, since reading takes as long; None is ``SLOW_SECONDS``.
    """

    def __init__(
        self, directory: str | Path | None, name: str, identity: str, slow_seconds: float | None = None
    ) -> None:
        directory = directory or os.environ.get(CACHE_VARIABLE)
        digest = hashlib.blake2b(identity.encode(), digest_size=12).hexdigest()
        self.path = Path(directory).expanduser() / f"{name}-{digest}.items" if directory else None
        self.num_made = 0
        self._slow_seconds = SLOW_SECONDS if slow_seconds is None else slow_seconds
        self._kept: dict[int, str] | None = None

    def get(self, index: int, make: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
        """The item, read or made; each call returns another object."""
        if self.path is None:
            return make(index)
        if self._kept is None:
            self._kept = _read(self.path)
        if index in self._kept:
            kept: dict[str, Any] = ast.literal_eval(self._kept[index])
            return kept
        start = time.perf_counter()
        item = make(index)
        self.num_made += 1
        if time.perf_counter() - start >= self._slow_seconds:
            literal = repr(item)
            if _is_exact(literal):
                self._kept[index] = literal
                _append(self.path, index, literal)
        return item


def _is_exact(literal: str) -> bool:
    """Whether the literal, read back, is written the same; objects, enums and numpy's numbers are no literals."""
    try:
        return repr(ast.literal_eval(literal)) == literal
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


def _append(path: Path, index: int, literal: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    body = f"{index} {literal}"
    line = f"{_checksum(body)} {body}\n".encode()
    # one write to a file opened for appending: lines of several processes do not mix
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def _read(path: Path) -> dict[int, str]:
    if not path.exists():
        return {}
    kept = {}
    for line in path.read_bytes().split(b"\n"):
        checksum, _, body = line.decode(errors="replace").partition(" ")
        if body and checksum == _checksum(body):
            index, _, literal = body.partition(" ")
            kept[int(index)] = literal
    return kept


def _checksum(body: str) -> str:
    return hashlib.blake2b(body.encode(), digest_size=6).hexdigest()
