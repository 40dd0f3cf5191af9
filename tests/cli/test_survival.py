"""Runs that end early are taken up again, and find what the uninterrupted run finds."""

import errno
import json
import math
import shutil
from pathlib import Path

import pytest
import torch

import worldmtp.checkpoint
import worldmtp.objective.policy_losses
from worldmtp.checkpoint import CheckpointError
from worldmtp.cli.resume import resumed_config
from worldmtp.cli.train import run
from worldmtp.tracking import JsonlWriter
from worldmtp.training import pipeline, warm_start

pytestmark = pytest.mark.usefixtures("no_report")

RUN = ("agent.rollout.num_iterations=3", "sft.eval_steps=1")
"""Evaluated during its warm start, too."""
COLD = ("sft.num_steps=0",)
"""Without a warm start, where it is not what is tested."""


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Where the uninterrupted run of this file stands once a test has asked for it."""
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.fixture
def reference(whole_run, compose_tiny, results_of, no_report):
    """What the uninterrupted run of three iterations found."""
    if not whole_run.exists():
        run(compose_tiny(*RUN), whole_run)
    return results_of(whole_run)


def resume(run_dir: Path, *overrides: str) -> float:
    return run(resumed_config(run_dir, overrides), run_dir, resumes=True)


def found_equal(found, expected):
    """Equal in all; the config, which the log holds as text, says where it was stopped."""
    for results in (found, expected):
        for record in results["metrics.jsonl"]:
            record.pop("text", None)
    return found == expected


@pytest.mark.parametrize("iteration", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_stopped_at_an_iteration(reference, compose_tiny, results_of, tmp_path, capsys, iteration):
    config = compose_tiny(*RUN, f"checkpoint.stop_after={iteration}")
    assert math.isnan(run(config, tmp_path))
    assert f"stopped after iteration {iteration}; go on with resume={tmp_path}" in capsys.readouterr().out
    resume(tmp_path)
    assert found_equal(results_of(tmp_path), reference)


def test_killed_during_the_warm_start(reference, compose_tiny, results_of, tmp_path, monkeypatch):
    report = pipeline.ProgressReporter.update

    def dies(self, stage, fraction, note=""):
        if (stage, note) == ("warm start", "step 3/3"):
            raise MemoryError("killed")
        report(self, stage, fraction, note)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.ProgressReporter, "update", dies)
        with pytest.raises(MemoryError):
            run(compose_tiny(*RUN), tmp_path)
    # Step 2 was saved and step 3 not, and a kill in the middle of saving leaves a directory without its state.
    trainer = tmp_path / "sft" / "trainer"
    assert [path.name for path in trainer.glob("checkpoint-*")] == ["checkpoint-2"]
    shutil.copytree(trainer / "checkpoint-2", trainer / "checkpoint-3")
    (trainer / "checkpoint-3" / "trainer_state.json").write_text('{"global_st')
    resume(tmp_path)
    assert not trainer.exists()
    assert found_equal(results_of(tmp_path), reference)


@pytest.mark.parametrize("moment", [pytest.param("save_model", marks=pytest.mark.slow), "write_report"])
def test_killed_after_the_last_iteration(reference, compose_tiny, results_of, tmp_path, monkeypatch, moment):
    def dies(*args, **kwargs):
        raise MemoryError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, moment, dies)
        with pytest.raises(MemoryError):
            run(compose_tiny(*RUN), tmp_path)
    assert not (tmp_path / "DONE").exists()
    resume(tmp_path)
    assert (tmp_path / "DONE").exists()
    assert found_equal(results_of(tmp_path), reference)


@pytest.mark.slow
def test_started_once_more_with_the_same_config_goes_on(reference, compose_tiny, results_of, tmp_path, monkeypatch):
    def dies(*args, **kwargs):
        raise MemoryError("killed")

    config = compose_tiny(*RUN)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_report", dies)
        with pytest.raises(MemoryError):
            run(config, tmp_path)
    exact = run(config, tmp_path)
    assert found_equal(results_of(tmp_path), reference)
    assert run(config, tmp_path) == exact  # done: read, not run


def test_extended_run(compose_tiny, results_of, tmp_path):
    run(compose_tiny("agent.rollout.num_iterations=1"), tmp_path)
    assert (tmp_path / "DONE").exists()
    resume(tmp_path, "agent.rollout.num_iterations=2")
    assert sum("rollout/return_mean" in record for record in results_of(tmp_path)["metrics.jsonl"]) == 2
    assert (tmp_path / "DONE").exists()


def test_a_run_is_not_taken_back_and_not_run_again(compose_tiny, tmp_path, monkeypatch):
    """Its config would say one iteration, and its model and report would be those of two. Told its own, it is read."""
    exact = run(compose_tiny(*COLD), tmp_path / "run")
    config, summary = ((tmp_path / "run" / name).read_text() for name in ("config.yaml", "summary.json"))
    with pytest.raises(ValueError, match=r"num_iterations=1: this run has done 2 iterations already.* at least as"):
        resume(tmp_path / "run", "agent.rollout.num_iterations=1")
    assert (tmp_path / "run" / "config.yaml").read_text() == config
    assert (tmp_path / "run" / "summary.json").read_text() == summary
    monkeypatch.setattr(pipeline, "reinforce", None)
    assert run(compose_tiny(*COLD), tmp_path / "run") == exact


def test_full_disk(reference, compose_tiny, results_of, tmp_path, monkeypatch):
    write = worldmtp.checkpoint._write
    calls = []

    def full(target, encoded):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(target, encoded)

    with monkeypatch.context() as patch:
        patch.setattr(worldmtp.checkpoint, "_write", full)
        with pytest.raises(CheckpointError) as caught:
            run(compose_tiny(*RUN), tmp_path)
    assert "Could not write the checkpoint of step 2" in str(caught.value)
    assert "No space left on device" in str(caught.value)
    assert "The newest intact checkpoint is" in str(caught.value)
    assert "(step 1)" in str(caught.value)
    assert caught.value.__notes__ == [f"What is saved stays; go on with resume={tmp_path}"]
    resume(tmp_path)
    assert found_equal(results_of(tmp_path), reference)


def test_full_disk_of_the_log(compose_tiny, tmp_path, monkeypatch):
    def full(self, values, step):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(JsonlWriter, "scalars", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        run(compose_tiny(), tmp_path)
    assert caught.value.__notes__ == [f"What is saved stays; go on with resume={tmp_path}"]


def test_corrupt_checkpoint(reference, compose_tiny, results_of, tmp_path):
    run(compose_tiny(*RUN, "checkpoint.stop_after=2"), tmp_path)
    first, last = sorted((tmp_path / "checkpoints").iterdir())
    damaged = bytearray(last.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    last.write_bytes(damaged)
    with pytest.raises(CheckpointError) as caught:
        resume(tmp_path)
    assert f"The checkpoint {last} is corrupt" in str(caught.value)
    assert f"The newest intact checkpoint is {first} (step 1)" in str(caught.value)
    assert "remove the corrupt file and resume again" in str(caught.value)
    last.unlink()
    resume(tmp_path)
    assert found_equal(results_of(tmp_path), reference)


def test_missing_checkpoints(compose_tiny, tmp_path):
    run(compose_tiny(*COLD, "agent.rollout.num_iterations=3", "checkpoint.stop_after=2"), tmp_path)
    log = (tmp_path / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match=r"has logged 2 iterations and .*checkpoints holds no checkpoint"):
        resume(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == log


@pytest.mark.slow
def test_stopped_before_the_first_checkpoint(reference, compose_tiny, results_of, tmp_path, monkeypatch):
    """More frequent checkpoints are asked for when it is taken up: there never was one, so nothing is missing."""
    every = (*RUN, "checkpoint.every_iterations=10")
    run(compose_tiny(*every, "checkpoint.stop_after=2"), tmp_path)
    assert not (tmp_path / "checkpoints").exists()

    def dies(*args, **kwargs):
        raise MemoryError("killed")

    with monkeypatch.context() as patch:  # the new interval is in config.yaml, and the old one's log still there
        patch.setattr(pipeline, "load_last", dies)
        with pytest.raises(MemoryError):
            resume(tmp_path, "checkpoint.every_iterations=1")
    resume(tmp_path)
    assert found_equal(results_of(tmp_path), reference)


def test_damaged_warm_start(compose_tiny, tmp_path):
    run(compose_tiny("checkpoint.stop_after=1"), tmp_path)
    (tmp_path / "sft" / "model" / "model.safetensors").write_bytes(b"\0" * 8)
    with pytest.raises(ValueError, match=r"the model in .*sft/model cannot be read.*Delete that directory"):
        resume(tmp_path)


def test_nan_loss_names_iteration_term_and_checkpoint(compose_tiny, tmp_path, monkeypatch):
    loss = worldmtp.objective.policy_losses.policy_loss_per_token
    calls = []

    def broken(*args):
        calls.append(args)
        # Two epochs of two minibatches an iteration: the fifth call is the second iteration's first.
        return loss(*args) * (math.nan if len(calls) == 5 else 1.0)

    monkeypatch.setattr(worldmtp.objective.policy_losses, "policy_loss_per_token", broken)
    with pytest.raises(FloatingPointError) as caught:
        run(compose_tiny(*COLD), tmp_path)
    checkpoint = tmp_path / "checkpoints" / "checkpoint-000000000001.pt"
    assert "iteration 1: losses/policy is nan; the update was not applied." in str(caught.value)
    assert f"The last good checkpoint is {checkpoint}." in str(caught.value)
    assert f"resume={tmp_path}" in str(caught.value)


def test_nan_loss_before_the_first_checkpoint(compose_tiny, tmp_path, monkeypatch):
    loss = worldmtp.objective.policy_losses.policy_loss_per_token
    monkeypatch.setattr(worldmtp.objective.policy_losses, "policy_loss_per_token", lambda *args: loss(*args) * math.nan)
    with pytest.raises(FloatingPointError, match=r"iteration 0: .*There is no checkpoint yet; start a new run"):
        run(compose_tiny(*COLD), tmp_path)


def test_nan_in_the_warm_start(compose_tiny, tmp_path):
    # A learning rate of 1e30 makes the second step's logits infinite.
    with pytest.raises(FloatingPointError, match=r"Non-finite .* step 2: .*last good checkpoint is .*checkpoint-1;"):
        run(compose_tiny("sft.learning_rate=1e30", "sft.warmup_steps=0"), tmp_path)


def test_a_weight_that_is_not_finite_is_never_saved(compose_tiny, tmp_path, monkeypatch):
    from worldmtp.agents.trainer import ImaginationTrainer

    step = ImaginationTrainer.step

    def poisoned(self):
        result = step(self)
        if self.iteration == 2:
            with torch.no_grad():
                next(self.model.world_heads.parameters()).fill_(math.inf)
        return result

    monkeypatch.setattr(ImaginationTrainer, "step", poisoned)
    with pytest.raises(FloatingPointError, match=r"iteration 2: the weights of world_heads\..* are not finite"):
        run(compose_tiny(*COLD), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-000000000001.pt"]


def test_interrupted_by_the_keyboard(compose_tiny, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "reinforce", interrupted)
    with pytest.raises(SystemExit) as caught:
        run(compose_tiny(*COLD), tmp_path)
    assert caught.value.code == 130
    assert f"go on with resume={tmp_path}" in capsys.readouterr().err


def test_run_without_iterations_logs_its_end_once(compose_tiny, tmp_path):
    run(compose_tiny(*COLD, "agent.rollout.num_iterations=0"), tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum("eval/exact" in record for record in records) == 2  # the warm start's and the end's


def test_wall_clock_goes_on_over_a_resumption(compose_tiny, tmp_path):
    run(compose_tiny(*COLD, "checkpoint.stop_after=1"), tmp_path)
    log = tmp_path / "metrics.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(record | {"time_seconds": 1000.0}) + "\n" for record in records))
    resume(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["wall_clock_seconds"] >= 1000.0


def test_the_newest_whole_trainer_checkpoint_is_found(tmp_path):
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-11").mkdir()
    assert warm_start.last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-11").exists()
    assert warm_start.last_whole_checkpoint(tmp_path / "nowhere") is None
