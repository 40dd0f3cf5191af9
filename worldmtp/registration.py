"""Gymnasium knows our ids as soon as both packages are imported, in either order, and neither pulls in the other.

Gymnasium 1.4 loads no plug-ins by entry points. So where it is imported already, ``worldmtp.envs`` is, too, which
registers; where it is not, a finder in front of the import system waits for it, and goes when it has come.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_ENVIRONMENTS = "worldmtp.envs"


def register_with_gymnasium() -> None:
    """Register the environments now, or when gymnasium is imported."""
    if "gymnasium" in sys.modules:
        import_module(_ENVIRONMENTS)
    else:
        sys.meta_path.insert(0, _AfterGymnasium())


class _AfterGymnasium(MetaPathFinder):
    """Finds gymnasium as the other finders do, and has our environments imported behind it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's spec as it would have been; who only looks for it, and does not import it, changes nothing."""
        if fullname != "gymnasium":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((found for finder in others if (found := finder.find_spec(fullname, path, target))), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            execute(module)
            import_module(_ENVIRONMENTS)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]  # of this spec's loader alone
        return spec
