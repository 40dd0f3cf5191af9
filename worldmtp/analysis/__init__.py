"""Predicted against realized trajectories: metrics, figures and the report, from saved artefacts alone.

Nothing here needs a model, an environment or a GPU. Public names are loaded on first use.
"""

from typing import TYPE_CHECKING

from worldmtp.lazy import lazy_exports

if TYPE_CHECKING:
    from worldmtp.analysis.artefacts import ArtefactError as ArtefactError
    from worldmtp.analysis.artefacts import EvalArtefact as EvalArtefact
    from worldmtp.analysis.artefacts import artefact_names as artefact_names
    from worldmtp.analysis.artefacts import load_artefact as load_artefact
    from worldmtp.analysis.artefacts import save_artefact as save_artefact
    from worldmtp.analysis.metrics import depth_scalars as depth_scalars
    from worldmtp.analysis.report import write_report as write_report

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "artefacts": "ArtefactError EvalArtefact artefact_names load_artefact save_artefact",
        "metrics": "depth_scalars",
        "report": "write_report",
    },
)
