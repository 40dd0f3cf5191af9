"""Metrics, token strips and progress of a run. torch, TensorBoard, PIL and rich are imported at their first use."""

from worldmtp.tracking.progress import ProgressReporter, Stage
from worldmtp.tracking.strips import StripRow, TokenStrip, render_strip
from worldmtp.tracking.tag_table import TagRow, TagTable
from worldmtp.tracking.tags import TAGS, Layout
from worldmtp.tracking.tensorboard_writer import (
    TENSORBOARD_DIRECTORY,
    TensorBoardWriter,
    default_layout,
    tensorboard_command,
)
from worldmtp.tracking.writers import (
    METRICS_FILE,
    JsonlWriter,
    MetricWriter,
    MultiWriter,
    read_records,
)

__all__ = [
    "METRICS_FILE",
    "TAGS",
    "TENSORBOARD_DIRECTORY",
    "JsonlWriter",
    "Layout",
    "MetricWriter",
    "MultiWriter",
    "ProgressReporter",
    "Stage",
    "StripRow",
    "TagRow",
    "TagTable",
    "TensorBoardWriter",
    "TokenStrip",
    "default_layout",
    "read_records",
    "render_strip",
    "tensorboard_command",
]
