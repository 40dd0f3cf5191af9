"""Writers: what is on disk, what survives a kill, and what TensorBoard reads."""

import json
import math
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pytest

from worldmtp.tracking import (
    JsonlWriter,
    MetricWriter,
    MultiWriter,
    TensorBoardWriter,
    default_layout,
    read_records,
    tensorboard_command,
)


class Clock:
    """Seconds that pass when told."""

    def __init__(self, now=100.0):
        self.now = now

    def __call__(self):
        return self.now


def test_jsonl_lines_hold_step_time_and_values(tmp_path):
    clock = Clock()
    writer = JsonlWriter(tmp_path, clock=clock)
    clock.now += 2.5
    writer.scalars({"losses/policy": 0.5, "env/tokens": 64}, step=64)
    writer.text("run/config", "a: 1", step=64)
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 64, "time_seconds": 2.5, "losses/policy": 0.5, "env/tokens": 64.0},
        {"step": 64, "time_seconds": 2.5, "text": {"run/config": "a: 1"}},
    ]


def test_nonfinite_values_are_null_and_listed_never_dropped(tmp_path):
    with closing(JsonlWriter(tmp_path)) as writer:
        writer.scalars({"losses/policy": math.nan, "losses/value": math.inf, "losses/entropy": 1.0}, step=1)
    line = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in line
    assert "Infinity" not in line
    record = json.loads(line)
    assert record["losses/policy"] is None
    assert record["losses/value"] is None
    assert record["losses/entropy"] == 1.0
    assert record["nonfinite"] == ["losses/policy", "losses/value"]


def test_jsonl_pictures_and_histograms(tmp_path):
    from PIL import Image

    picture = np.zeros((2, 3, 3), dtype=np.uint8)
    picture[0, 1] = [255, 0, 7]
    with closing(JsonlWriter(tmp_path)) as writer:
        writer.image("imagination/imagined_3", picture, step=12)
        # Quantiles 0, .1, .5, .9, 1 of 0..10 are 0, 1, 5, 9, 10.
        writer.histogram("rollout/return", np.append(np.arange(11.0), np.nan), step=12)
    records = read_records(tmp_path / "metrics.jsonl")
    relative = records[0]["image"]["imagination/imagined_3"]
    assert relative == "images/imagination/imagined_3/000000000012.png"
    assert np.array_equal(np.asarray(Image.open(tmp_path / relative)), picture)
    assert records[1]["histogram"]["rollout/return"] == {"count": 12, "finite": 11, "quantiles": [0, 1, 5, 9, 10]}


def test_resuming_drops_later_lines_and_a_line_cut_by_a_kill(tmp_path):
    clock = Clock()
    with closing(JsonlWriter(tmp_path, clock=clock)) as writer:
        for step in [10, 20, 30]:
            clock.now += 1
            writer.scalars({"losses/policy": float(step)}, step=step)
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 40, "losses/po')

    clock = Clock(5000.0)
    with closing(JsonlWriter(tmp_path, clock=clock)) as resumed:
        resumed.resume_at(20)
        clock.now += 3
        resumed.scalars({"losses/policy": 31.0}, step=31)
    records = read_records(path)
    assert [record["step"] for record in records] == [10, 20, 31]
    # Two seconds were on the clock at step 20; three more have passed.
    assert [record["time_seconds"] for record in records] == [1.0, 2.0, 5.0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_run_is_not_written_over_by_accident(tmp_path):
    with closing(JsonlWriter(tmp_path)) as writer:
        writer.scalars({"losses/policy": 1.0}, step=1)
    other = JsonlWriter(tmp_path)
    with pytest.raises(FileExistsError, match=r"already holds the metrics of a run. Call resume_at"):
        other.scalars({"losses/policy": 2.0}, step=1)


def test_a_writer_can_be_put_back_after_it_wrote(tmp_path):
    with MultiWriter(tmp_path) as writer:
        for step in [1, 2]:
            writer.scalars({"losses/policy": float(step)}, step=step)
        time.sleep(1)  # event files of one second are read in the order of a counter as text: 10 before 9
        writer.resume_at(1)
        writer.scalars({"losses/policy": 20.0}, step=2)
        assert [record["losses/policy"] for record in read_records(tmp_path / "metrics.jsonl")] == [1.0, 20.0]
        writer.resume_at(-1)
        assert read_records(tmp_path / "metrics.jsonl") == []
        time.sleep(1)
        writer.scalars({"losses/policy": 3.0}, step=0)
    assert numbers(read_events(tmp_path / "tensorboard"), "losses/policy") == [(0, 3.0)]


def test_steps_do_not_go_back(tmp_path):
    with closing(JsonlWriter(tmp_path)) as writer:
        writer.scalars({"sft/loss": 1.0}, step=300)
        writer.scalars({"sft/loss": 0.9}, step=300)
        with pytest.raises(ValueError, match=r"step=64 after step=300; .*a writer of its own"):
            writer.scalars({"losses/policy": 1.0}, step=64)
    with closing(JsonlWriter(tmp_path)) as resumed:
        resumed.resume_at(300)
        with pytest.raises(ValueError, match=r"step=299 after step=300"):
            resumed.scalars({"sft/loss": 1.0}, step=299)


def test_a_damaged_record_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2 is not JSON"):
        read_records(path)
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match=r"line 1 is not an object with a step"):
        read_records(path)


@pytest.mark.parametrize("make", [JsonlWriter, TensorBoardWriter, MultiWriter])
def test_every_writer_is_a_metric_writer_and_checks_tags_before_writing(tmp_path, make):
    writer = make(tmp_path / "run")
    assert isinstance(writer, MetricWriter)
    with pytest.raises(ValueError, match=r"Did you mean 'losses/policy'"):
        writer.scalars({"losses/value": 1.0, "losses/polcy": 1.0}, step=1)
    with pytest.raises(ValueError, match=r"No image tag"):
        writer.image("losses/policy", np.zeros((1, 1, 3), dtype=np.uint8), step=1)
    with pytest.raises(ValueError, match=r"No text tag"):
        writer.text("losses/policy", "", step=1)
    with pytest.raises(ValueError, match=r"No histogram tag"):
        writer.histogram("losses/policy", np.zeros(1), step=1)
    writer.flush()
    writer.close()
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def read_events(directory):
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"tensors": 0})
    events.Reload()
    return events


def numbers(events, tag):
    from tensorboard.util.tensor_util import make_ndarray

    return [(event.step, make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]


def test_tensorboard_reads_what_was_written(tmp_path):
    import io

    from PIL import Image

    picture = np.full((4, 5, 3), 9, dtype=np.uint8)
    picture[3, 4] = [1, 2, 3]
    with MultiWriter(tmp_path) as writer:
        writer.custom_layout(default_layout())
        writer.scalars({"losses/policy": 0.25, "losses/value": math.nan}, step=3)
        writer.text("run/config", "a: 1", step=3)
        writer.image("imagination/imagined_3", picture, step=3)
        writer.histogram("rollout/return", np.array([0.0, 1.0, np.inf]), step=3)
    events = read_events(tmp_path / "tensorboard")
    assert numbers(events, "losses/policy") == [(3, 0.25)]
    assert math.isnan(numbers(events, "losses/value")[0][1])
    ((_, (width, height, png)),) = numbers(events, "imagination/imagined_3")
    assert (width, height) == (b"5", b"4")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), picture)
    ((_, buckets),) = numbers(events, "rollout/return")
    assert buckets[:, 2].sum() == 2  # left edge, right edge, count
    assert (buckets[0, 0], buckets[-1, 1]) == (0.0, 1.0)
    assert [(step, text.item()) for step, text in numbers(events, "run/config")] == [(3, b"a: 1")]
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    assert len(read_records(tmp_path / "metrics.jsonl")) == 4


def test_each_tag_has_its_description_and_its_plugin(tmp_path):
    from worldmtp.tracking.tags import TAGS

    with closing(TensorBoardWriter(tmp_path)) as writer:
        writer.scalars({"world_model/depth_3/accept": 0.5, "custom/mine": 1.0}, step=0)
        writer.text("run/config", "a", step=0)
        writer.image("imagination/imagined_0", np.zeros((1, 1, 3), dtype=np.uint8), step=0)
        writer.histogram("rollout/length", np.ones(2), step=0)
    events = read_events(tmp_path / "tensorboard")
    shown = {tag: events.SummaryMetadata(tag) for tag in events.Tags()["tensors"]}
    assert {tag: metadata.plugin_data.plugin_name for tag, metadata in shown.items()} == {
        "world_model/depth_3/accept": "scalars",
        "custom/mine": "scalars",
        "run/config": "text",
        "imagination/imagined_0": "images",
        "rollout/length": "histograms",
    }
    described = {row.tag: row for row in TAGS.rows if row.kind == "scalar"}
    accept = described["world_model/depth_{k}/accept"]
    assert accept.estimator.startswith("mean of min(1, q_k / p)")
    assert shown["world_model/depth_3/accept"].summary_description == f"{accept.estimator} [probability]"
    assert shown["run/config"].summary_description == "the resolved configuration, or a note on the run"
    assert all(metadata.summary_description for metadata in shown.values())


def test_the_settings_of_a_run_are_on_the_page_hparams(tmp_path):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    with closing(TensorBoardWriter(tmp_path, hparams={"imagination.use": "off", "seed": 3})) as writer:
        writer.scalars({"losses/policy": 0.25}, step=3)
    events = read_events(tmp_path / "tensorboard")
    content = {tag: HParamsPluginData.FromString(data) for tag, data in events.PluginTagToContent("hparams").items()}
    settings = content["_hparams_/session_start_info"].session_start_info.hparams
    assert (settings["imagination.use"].string_value, settings["seed"].number_value) == ("off", 3)
    metrics = [info.name.tag for info in content["_hparams_/experiment"].experiment.metric_infos]
    assert "eval/exact" in metrics
    from worldmtp.tracking.tags import TAGS

    for tag in metrics:
        TAGS.check(tag, "scalar")


def test_a_resumed_run_hides_overlapped_events(tmp_path):
    with MultiWriter(tmp_path) as writer:
        for step in [1, 2, 3]:
            writer.scalars({"losses/policy": float(step)}, step=step)
    time.sleep(1)
    with MultiWriter(tmp_path) as writer:
        writer.resume_at(2)
        writer.scalars({"losses/policy": 30.0}, step=3)
    expected = [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert numbers(read_events(tmp_path / "tensorboard"), "losses/policy") == expected
    records = read_records(tmp_path / "metrics.jsonl")
    assert [(record["step"], record["losses/policy"]) for record in records] == expected


def test_layout_charts_name_documented_tags():
    from worldmtp.tracking.tags import TAGS

    for charts in default_layout().values():
        for kind, tags in charts.values():
            assert kind in {"Multiline", "Margin"}
            for tag in tags:
                TAGS.check(tag.replace(r"\d+", "2").replace("[a-z_]+", "rollout"), "scalar")


def test_the_command_line_quotes_the_directory(tmp_path):
    spaced = tmp_path / "my run"
    assert tensorboard_command(spaced) == f"tensorboard --logdir '{spaced}' --samples_per_plugin images=200,text=200"


def test_importing_tracking_is_light():
    program = (
        "import sys, worldmtp.tracking; print([m for m in ('torch', 'matplotlib', 'rich', 'PIL') if m in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
