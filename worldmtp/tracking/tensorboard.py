"""TensorBoard events, the layout of their charts, and the command line that shows them.

TensorBoard is imported with the first event. ``add_scalars`` is not used: it opens an event file per series.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Real, UInt8

from worldmtp.tracking.tags import TAGS, Layout, TagTable

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TENSORBOARD_DIRECTORY = "tensorboard"


class TensorBoardWriter:
    """Event files under ``<run dir>/tensorboard``; overlapped steps of a resumed run are purged."""

    def __init__(self, run_dir: Path, tags: TagTable = TAGS) -> None:
        self._directory = run_dir / TENSORBOARD_DIRECTORY
        self._tags = tags
        self._purge_step: int | None = None
        self._writer: SummaryWriter | None = None

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write one chart per tag."""
        for tag in values:
            self._tags.check(tag, "scalar")
        for tag, value in values.items():
            self._open().add_scalar(tag, float(value), step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Write markdown; TensorBoard escapes any HTML in it."""
        self._tags.check(tag, "text")
        self._open().add_text(tag, text, step)

    def image(self, tag: str, image: UInt8[np.ndarray, "height width 3"], step: int) -> None:
        """Write a picture."""
        self._tags.check(tag, "image")
        self._open().add_image(tag, image, step, dataformats="HWC")

    def histogram(self, tag: str, values: Real[np.ndarray, " n"], step: int) -> None:
        """Write a histogram of the finite values; without any there is nothing to draw."""
        self._tags.check(tag, "histogram")
        finite = values[np.isfinite(values)]
        if len(finite) > 0:
            self._open().add_histogram(tag, finite, step)

    def custom_layout(self, layout: Layout) -> None:
        """Fill the Custom Scalars tab."""
        self._open().add_custom_scalars(layout)

    def resume_at(self, step: int) -> None:
        """Hide the events after ``step``."""
        self.close()
        # TensorBoard hides events at the purge step too.
        self._purge_step = step + 1

    def flush(self) -> None:
        """Flush to disk."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> "SummaryWriter":
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(log_dir=str(self._directory), purge_step=self._purge_step)
            self._purge_step = None
        return self._writer


def default_layout() -> Layout:
    """Return charts that lay side by side what is read together: curves by depth, imagined beside realized return."""
    return {
        "Headline": {
            "held-out exact match": ["Margin", ["eval/exact", "eval/exact_lo90", "eval/exact_hi90"]],
            "return": ["Multiline", ["rollout/return_mean", "rollout/exact_mean"]],
        },
        "World model by depth": {
            title: ["Multiline", [rf"world_model/depth_\d+/{quantity}"]]
            for title, quantity in [
                ("cross-entropy", "ce"),
                ("top-1 agreement", "top1"),
                ("acceptance", "accept"),
                ("survival", "survival"),
            ]
        },
        "Imagined and realized": {
            "return": ["Multiline", ["imagination/return_imagined", "imagination/return_realized"]],
            "skill": ["Multiline", ["imagination/r2", "imagination/corr", "imagination/slope"]],
            "rungs": ["Multiline", [r"imagination/rung_\d+/r2"]],
        },
        "Policy health": {
            "divergence": ["Multiline", ["losses/approx_kl", "losses/kl_reference"]],
            "entropy": ["Multiline", ["losses/entropy"]],
            "clip fraction": ["Multiline", ["losses/clip_fraction"]],
        },
        "Time": {"seconds": ["Multiline", [r"time/[a-z_]+_seconds"]]},
    }


def tensorboard_command(run_dir: Path) -> str:
    """Return the command line that opens a run; its flags keep 200 images and texts per tag instead of 10."""
    return f"tensorboard --logdir {shlex.quote(str(run_dir))} --samples_per_plugin images=200,text=200"
