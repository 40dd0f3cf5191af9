"""Published checkpoints with multi-token-prediction heads, in and out. Public names, loaded on first use."""

from typing import TYPE_CHECKING

from worldmtp.lazy import lazy_exports

if TYPE_CHECKING:
    from worldmtp.interchange.exporting import ExportReport as ExportReport
    from worldmtp.interchange.exporting import export_checkpoint as export_checkpoint
    from worldmtp.interchange.importing import import_checkpoint as import_checkpoint
    from worldmtp.interchange.layouts import available_layouts as available_layouts
    from worldmtp.interchange.probing import SpecProbe as SpecProbe
    from worldmtp.interchange.probing import probe_spec as probe_spec
    from worldmtp.interchange.problems import LayoutError as LayoutError

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "exporting": "ExportReport export_checkpoint",
        "importing": "import_checkpoint",
        "layouts": "available_layouts",
        "probing": "SpecProbe probe_spec",
        "problems": "LayoutError",
    },
)
