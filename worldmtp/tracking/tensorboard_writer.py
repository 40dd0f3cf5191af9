"""The TensorBoard writer: event files that TensorBoard's own pages read, each tag with its description.

Events hold tensors, as TensorBoard 2 writes them: its data server drops the description of the older kind. The run's
settings stand on the page HParams, beside the numbers that it came to. TensorBoard is imported with the first event.
"""

import io
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Real, UInt8

from worldmtp.tracking.tag_table import Kind, TagTable
from worldmtp.tracking.tags import TAGS, Layout

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

TENSORBOARD_DIRECTORY = "tensorboard"
HPARAM_METRICS = ("eval/exact", "eval/exact_sampled", "eval/score", "world_model/h_eff", "rollout/return_mean")
"""What the page HParams sets beside the settings of a run."""


class TensorBoardWriter:
    """Event files under ``<run dir>/tensorboard``; overlapped steps of a resumed run are purged.

    ``hparams`` are the settings of the run, plain values by name, for TensorBoard's page of that name.
    """

    def __init__(
        self, run_dir: Path, tags: TagTable = TAGS, hparams: Mapping[str, int | float | str] | None = None
    ) -> None:
        self._directory = run_dir / TENSORBOARD_DIRECTORY
        self._tags = tags
        self._hparams = dict(hparams or {})
        self._purge_step: int | None = None
        self._writer: EventFileWriter | None = None

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write one chart per tag."""
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        descriptions = {tag: self._description(tag, "scalar") for tag in values}
        for tag, value in values.items():
            self._add(scalar_pb(tag, float(value), descriptions[tag]), step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Write markdown; TensorBoard escapes any HTML in it."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._add(text_pb(tag, text, self._description(tag, "text")), step)

    def image(self, tag: str, image: UInt8[np.ndarray, "height width 3"], step: int) -> None:
        """Write a picture."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.image.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        metadata = create_summary_metadata(display_name=None, description=self._description(tag, "image"))
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        height, width = (str(size).encode() for size in image.shape[:2])
        tensor = make_tensor_proto([width, height, buffer.getvalue()])
        self._add(Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)]), step)

    def histogram(self, tag: str, values: Real[np.ndarray, " n"], step: int) -> None:
        """Write a histogram of the finite values; without any there is nothing to draw."""
        from tensorboard.plugins.histogram.summary_v2 import histogram_pb

        description = self._description(tag, "histogram")
        finite = values[np.isfinite(values)]
        if len(finite) > 0:
            self._add(histogram_pb(tag, finite, description=description), step)

    def custom_layout(self, layout: Layout) -> None:
        """Fill the Custom Scalars tab."""
        from torch.utils.tensorboard.summary import custom_scalars

        self._add(custom_scalars(layout), 0)

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

    def _description(self, tag: str, kind: Kind) -> str:
        row = self._tags.row(tag, kind)
        return row.estimator if row.unit == "-" else f"{row.estimator} [{row.unit}]"

    def _add(self, summary: Any, step: int) -> None:
        self._write(step, summary=summary)

    def _write(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._open().add_event(Event(wall_time=time.time(), step=step, **content))

    def _open(self) -> "EventFileWriter":
        if self._writer is None:
            from tensorboard.compat.proto.event_pb2 import SessionLog
            from tensorboard.summary.writer.event_file_writer import EventFileWriter

            is_first = not (self._directory.is_dir() and any(self._directory.iterdir()))
            self._writer = EventFileWriter(str(self._directory))
            # TensorBoard purges at the second start that it reads and those behind, so the first one is logged, too.
            if is_first or self._purge_step is not None:
                self._write(self._purge_step or 0, session_log=SessionLog(status=SessionLog.START))
                self._purge_step = None
            self._write_hparams()
        return self._writer

    def _write_hparams(self) -> None:
        """Write the run's settings, which say the same each time."""
        if not self._hparams:
            return
        from torch.utils.tensorboard.summary import hparams

        experiment, session, _ = hparams(self._hparams, dict.fromkeys(HPARAM_METRICS, 0.0))
        for summary in (experiment, session):
            self._add(summary, 0)


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
        "Inside the model": {
            "attention on the prompt": [
                "Multiline",
                [r"attention/layer_\d+/prompt_strongest", "attention/prompt_uniform"],
            ],
            "attention on the goal": ["Multiline", [r"attention/layer_\d+/goal_strongest", "attention/goal_uniform"]],
            "drift of the heads": ["Multiline", [r"heads/depth_\d+/drift"]],
        },
        "Time": {"seconds": ["Multiline", [r"time/[a-z_]+_seconds"]]},
    }


def tensorboard_command(run_dir: Path) -> str:
    """Return the command line that opens a run; its flags keep 200 images and texts per tag instead of 10."""
    return f"tensorboard --logdir {shlex.quote(str(run_dir))} --samples_per_plugin images=200,text=200"
