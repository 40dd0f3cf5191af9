"""Published checkpoints with multi-token-prediction heads, in and out. Public names, loaded on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldmtp.interchange.exporting import ExportReport, export_checkpoint
    from worldmtp.interchange.importing import import_checkpoint
    from worldmtp.interchange.layouts import available_layouts
    from worldmtp.interchange.probing import SpecProbe, probe_spec
    from worldmtp.interchange.problems import LayoutError

_MODULES = {
    "ExportReport": "worldmtp.interchange.exporting",
    "LayoutError": "worldmtp.interchange.problems",
    "SpecProbe": "worldmtp.interchange.probing",
    "available_layouts": "worldmtp.interchange.layouts",
    "export_checkpoint": "worldmtp.interchange.exporting",
    "import_checkpoint": "worldmtp.interchange.importing",
    "probe_spec": "worldmtp.interchange.probing",
}

__all__ = [
    "ExportReport",
    "LayoutError",
    "SpecProbe",
    "available_layouts",
    "export_checkpoint",
    "import_checkpoint",
    "probe_spec",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
