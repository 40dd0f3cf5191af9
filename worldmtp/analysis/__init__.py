"""Predicted against realized trajectories: metrics, figures and the report, from saved artefacts alone.

Nothing here needs a model, an environment or a GPU. The report and its figures are imported when they are used.
"""

from typing import TYPE_CHECKING, Any

from worldmtp.analysis.artefacts import ArtefactError, EvalArtefact, artefact_names, load_artefact, save_artefact
from worldmtp.analysis.metrics import depth_scalars

if TYPE_CHECKING:
    from worldmtp.analysis.report import write_report

__all__ = [
    "ArtefactError",
    "EvalArtefact",
    "artefact_names",
    "depth_scalars",
    "load_artefact",
    "save_artefact",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "write_report":
        from worldmtp.analysis.report import write_report

        return write_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
