"""The Python standard library's own source files: real text that every machine has, without a download.

Left out: tests (more than half of the bytes, much of it repetition), generated tables and texts, files that belong to
one build of the interpreter, and empty files.
"""

import os
import sysconfig
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

EXCLUDED_FOLDERS = (
    *("site-packages", "dist-packages", "__pycache__"),  # not the standard library's own
    *("test", "tests", "idle_test"),
    "config-*",  # one build of the interpreter
    "encodings",  # generated tables of character codes
    "pydoc_data",  # the language reference, generated as one dictionary
)
"""Patterns of folder names, at any level."""

EXCLUDED_FILES = ("_sysconfigdata*", "sitecustomize.py", "usercustomize.py")
"""Patterns of files that describe one build or one machine."""


def stdlib_root() -> Path:
    """Return the folder of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def stdlib_files(root: Path | None = None) -> list[Path]:
    """Return the library's Python files, sorted, relative to ``root``: the same on every machine with that Python.

    ``EXCLUDED_FOLDERS``, ``EXCLUDED_FILES``, empty files and files that are not UTF-8 are left out. Another ``root``
    is read by the same rules.

    Raises:
        ValueError: ``root`` is no folder, or no file is left; some systems install the library without its source.
    """
    root = stdlib_root() if root is None else root
    if not root.is_dir():
        raise ValueError(f"root={root} is not a folder; pass one that holds Python files.")
    kept = [path for path in _python_files(root) if _is_text(path)]
    if not kept:
        raise ValueError(
            f"No Python file under {root} is one to learn from: there is none, or each is empty, not UTF-8, or in a "
            f"folder that is left out ({', '.join(EXCLUDED_FOLDERS)}). Pass the root of a tree of sources."
        )
    return sorted((path.relative_to(root) for path in kept), key=lambda path: path.as_posix())


def _python_files(root: Path) -> Iterator[Path]:
    """Yield the files that no pattern leaves out, without a look into folders that one does: they hold most files."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not _is_among(name, EXCLUDED_FOLDERS)]
        paths = (Path(folder, name) for name in names if name.endswith(".py") and not _is_among(name, EXCLUDED_FILES))
        yield from (path for path in paths if path.is_file())


def _is_among(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _is_text(path: Path) -> bool:
    content = path.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return len(content) > 0
