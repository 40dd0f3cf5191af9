"""Imports at the moment of use: names that a package loads lazily, and names that a user wrote as "<module>:<name>".

Importing a package whose names are lazy costs milliseconds and pulls no torch.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pkgutil import resolve_name
from typing import Any

from worldmtp.choices import did_you_mean

_Exports = tuple[Callable[[str], object], Callable[[], list[str]], list[str]]


def lazy_exports(package: str, names: Mapping[str, str]) -> _Exports:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package that loads its names on first use (PEP 562).

    Args:
        package: its ``__name__``.
        names: module, relative to the package, to the names it defines, with spaces between them. A module that
            defines a name of its own is listed as ``"module": ""``, for the module itself.
    """
    module_of = {name: module for module, defined in names.items() for name in defined.split()}
    modules = {module for module, defined in names.items() if not defined}
    public = sorted({*module_of, *modules})

    def load(name: str) -> object:
        if name in modules:
            return import_module(f"{package}.{name}")
        if name in module_of:
            return getattr(import_module(f"{package}.{module_of[name]}"), name)
        raise AttributeError(_unknown(package, name, public))

    return load, lambda: public, public


def import_name(path: str, what: str) -> Any:
    """Return what "<module>:<name>" stands for; ``what`` says in the error message which value it is.

    Raises:
        ValueError: the path has another form, the module cannot be imported, or it does not define the name.
    """
    try:
        if not path.rpartition(":")[2] or ":" not in path:
            raise ImportError("the module or the name is missing")
        return resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{what} cannot be imported: {error}. Expected '<module>:<class>'.") from error


def _unknown(package: str, name: str, public: list[str]) -> str:
    end = did_you_mean(name, public, f"; public names: {', '.join(public)}.")
    return f"module {package!r} has no attribute {name!r}{end}"
