"""Files and directories that are whole or not there, whenever the process or the machine stops.

Content is written beside its place, flushed to disk, and renamed. The rename replaces a file in one step. A directory
cannot be replaced so: what stood there is moved aside first and removed last, so one of the two is always on disk.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MARK = ".partial"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a place to write a file or a directory; put it at ``path`` when the block ends, and drop it on an error.

    The place has a name of its own, so two processes that write one path do not mix their content.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_MARK}")
    try:
        yield partial
        _sync_all(partial)
        if partial.is_dir():
            _replace_directory(partial, path)
        else:
            os.replace(partial, path)
    except BaseException:
        _remove(partial)
        raise
    _sync(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all; line ends stay as they are."""
    write_bytes(path, text.encode())


def remove_partial(directory: Path, name_pattern: str = "*") -> None:
    """Remove what killed writers left of the paths whose names match; call it where nobody else writes them."""
    for leftover in directory.glob(f".{name_pattern}.*{_MARK}"):
        _remove(leftover)


def _replace_directory(partial: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.old")
    if path.exists():  # if not, a writer was killed between the two renames, and the old one is all there is
        _remove(old)
        os.replace(path, old)
    try:
        os.replace(partial, path)
    except BaseException:
        if old.exists():
            os.replace(old, path)
        raise
    _sync(path.parent)  # the new name is on disk before the old content goes
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_all(path: Path) -> None:
    """Flush a file, or a directory with everything in it."""
    if path.is_dir():
        for inner in path.rglob("*"):
            _sync(inner)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
