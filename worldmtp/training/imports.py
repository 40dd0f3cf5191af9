"""The user's own modules, imported so that the environments in them are registered. No torch, no hydra."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path


def import_user_modules(modules: Sequence[str], option: str = "imports=") -> None:
    """Import modules and ``./files.py`` whose environments register themselves; the current directory is searched.

    A message calls what was given by ``option``.

    Raises:
        ValueError: a module or a file cannot be imported, or a file's name hides that of a module.
    """
    _search(Path.cwd())
    for name in modules:
        try:
            if name.endswith(".py"):
                _import_file(Path(name).resolve())
            else:
                importlib.import_module(name)
        except ImportError as error:
            raise ValueError(
                f"{option}{name!r} cannot be imported: {error}. Give a module on the path or a file as ./my_envs.py."
            ) from error


def _import_file(path: Path) -> None:
    """Import a file by its stem, so that another process can import it too; the name must be free."""
    if not path.is_file():
        raise ImportError(f"there is no file {path}")
    _search(path.parent)
    module = importlib.import_module(path.stem)
    found = getattr(module, "__file__", None)
    if found is None or Path(found).resolve() != path:
        raise ImportError(f"there is another module {path.stem!r}, {found or 'built in'}; rename the file")


def _search(directory: Path) -> None:
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
        importlib.invalidate_caches()
