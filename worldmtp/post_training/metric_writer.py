"""Forward what a Trainer logs to the run's own metric writer."""

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from worldmtp.tracking import MetricWriter


class MetricWriterCallback(TrainerCallback):
    """Writes every logged number as ``prefix + name`` at ``step_offset + global_step``, on the main process only.

    Args:
        writer: where the scalars go.
        prefix: put before every name as it is, "sft/" for example.
        step_offset: where this phase starts on the run's x axis.
    """

    def __init__(self, writer: MetricWriter, prefix: str = "", step_offset: int = 0) -> None:
        self.writer = writer
        self.prefix = prefix
        self.step_offset = step_offset

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the numbers of one log record; text is not a scalar and is left out."""
        if logs is None or not state.is_world_process_zero:
            return
        scalars = {
            f"{self.prefix}{name}": float(value)
            for name, value in logs.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        if scalars:
            self.writer.scalars(scalars, self.step_offset + state.global_step)
