"""Packages whose public names are loaded on first use, so that importing one costs milliseconds and pulls no torch."""

from collections.abc import Callable, Mapping
from importlib import import_module

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


def _unknown(package: str, name: str, public: list[str]) -> str:
    from difflib import get_close_matches  # here: only a mistake pays for it

    message = f"module {package!r} has no attribute {name!r}"
    close = get_close_matches(name, public, n=1)
    return f"{message}; did you mean {close[0]!r}?" if close else f"{message}; public names: {', '.join(public)}."
