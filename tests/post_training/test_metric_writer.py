"""MetricWriterCallback: which values reach the writer, under which name and step."""

from pathlib import Path

from transformers import TrainerControl, TrainerState, TrainingArguments

from worldmtp.post_training import MetricWriterCallback
from worldmtp.tracking import MultiWriter


class ListWriter(MultiWriter):
    """A writer of nothing, which remembers its scalars."""

    def __init__(self):
        super().__init__(Path("nowhere"), writers=())
        self.records = []

    def scalars(self, values, step):
        self.records.append((values, step))


def log(callback, logs, tmp_path, **state):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    callback.on_log(args, TrainerState(global_step=3, **state), TrainerControl(), logs=logs)


def test_numbers_are_written_with_prefix_and_offset_and_text_is_not(tmp_path):
    writer = ListWriter()
    log(MetricWriterCallback(writer, prefix="sft/", step_offset=100), {"loss": 2, "note": "x", "ok": True}, tmp_path)
    assert writer.records == [({"sft/loss": 2.0}, 103)]


def test_nothing_is_written_off_the_main_process_or_without_numbers(tmp_path):
    writer = ListWriter()
    log(MetricWriterCallback(writer), {"loss": 1.0}, tmp_path, is_world_process_zero=False)
    log(MetricWriterCallback(writer), {"note": "x"}, tmp_path)
    log(MetricWriterCallback(writer), None, tmp_path)
    assert writer.records == []
