"""The reinforcement stage: iterations with checkpoints, so that a kill at any moment loses nothing that was saved."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from worldmtp.agents.rollout import episode_returns
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, save_checkpoint
from worldmtp.model import MTPModel
from worldmtp.tracking import METRICS_FILE, MetricWriter, read_records
from worldmtp.training.closing import progress_note
from worldmtp.training.config import CheckpointConfig
from worldmtp.training.run_dir import RUN_LOG

CHECKPOINTS = "checkpoints"
CONFIG_TAG = "run/config"
"""The text that a log begins with: the config, as a block of YAML."""


class StoppedEarly(RuntimeError):
    """``checkpoint.stop_after`` was reached; the run can be resumed."""


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint's content: the trainer's state, and the step up to which the log belongs to it."""

    trainer: dict[str, Any]
    step: int


def load_last(run_dir: Path) -> SavedRun | None:
    """Return the newest checkpoint of a run, or None where it has none yet.

    Raises:
        CheckpointError: it is corrupt, and the message names the newest intact one; or the log shows that there were
            some and there is none.
    """
    directory = run_dir / CHECKPOINTS
    last = latest_checkpoint(directory)
    if last is None:
        check_none_is_lost(run_dir, directory)
        return None
    try:
        saved = load_checkpoint(last)
    except CheckpointError as error:
        raise CheckpointError(f"{error} To go on from there, remove the corrupt file and resume again.") from error
    return SavedRun(trainer=saved["trainer"], step=int(saved["step"]))


def check_none_is_lost(run_dir: Path, directory: Path) -> None:
    """Raise if the log of a run without a checkpoint shows that there were some.

    Raises:
        CheckpointError: it does.
    """
    num_logged, interval = _logged_iterations(run_dir)
    # The iteration after the first checkpoint is logged only when that is written.
    if num_logged > interval:
        raise CheckpointError(
            f"{run_dir} has logged {num_logged} iterations and {directory} holds no checkpoint. Put the newest "
            f"checkpoint-* back, or delete {METRICS_FILE} to begin anew from the warm start."
        )


def _logged_iterations(run_dir: Path) -> tuple[int, int]:
    """Return how many iterations the log holds, and how many lay between checkpoints when they were made.

    The config of the run cannot tell: a resumption may change the interval, and has written its own by now. The log
    begins with the config that it was opened under.
    """
    path = run_dir / METRICS_FILE
    records = read_records(path) if path.exists() else []
    num_logged = sum("rollout/return_mean" in record or "trl/loss" in record for record in records)
    if not num_logged:
        return 0, 0
    text = next(record["text"][CONFIG_TAG] for record in records if CONFIG_TAG in record.get("text", {}))
    opened_under = yaml.safe_load(text.removeprefix("```yaml\n").removesuffix("\n```"))
    return num_logged, int(opened_under["checkpoint"]["every_iterations"])


def reinforce(
    trainer: ImaginationTrainer,
    num_iterations: int,
    run_dir: Path,
    config: CheckpointConfig,
    writer: MetricWriter,
    evaluate: Callable[[int], float],
    report: Callable[[float, str], None],
) -> None:
    """Run to ``num_iterations`` from where ``trainer`` is.

    The x axis is environment tokens. A checkpoint of iteration n is written when n iterations are done and logged, and
    before anything later is, so that metrics after it can be dropped. ``evaluate`` returns the seconds of analysis.

    Raises:
        FloatingPointError: a loss or a weight is not finite; the message names the iteration, the term and the last
            good checkpoint.
        StoppedEarly: ``config.stop_after`` was reached.
    """
    directory = run_dir / CHECKPOINTS
    was_told = trainer.flat_returns.note is not None
    while trainer.iteration < num_iterations:
        if config.stop_after is not None and trainer.iteration >= config.stop_after:
            raise StoppedEarly(f"stopped after iteration {trainer.iteration}; go on with resume={run_dir}")
        try:
            metrics, rollout = trainer.step()
            _check_weights(trainer.model, trainer.iteration)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error} {_way_back(directory, run_dir)}") from error
        if trainer.flat_returns.note is not None and not was_told:
            RUN_LOG.warning("%s", trainer.flat_returns.note)
            was_told = True
        step = int(trainer.totals["env/tokens"])
        writer.scalars(metrics, step)
        writer.histogram("rollout/return", episode_returns(rollout).cpu().numpy(), step)
        writer.histogram("rollout/length", rollout.step_mask.sum(dim=1).cpu().numpy(), step)
        analysing = evaluate(step)
        seconds = metrics["time/total_seconds"] + analysing
        writer.scalars({"time/analysis_fraction": (trainer.analysis_seconds + analysing) / seconds}, step)
        if trainer.iteration % config.every_iterations == 0 or trainer.iteration == num_iterations:
            writer.flush()
            payload = {"trainer": trainer.state_dict(), "step": step}
            save_checkpoint(directory, trainer.iteration, payload, config.keep_last)
        report(
            trainer.iteration / num_iterations,
            f"iteration {trainer.iteration}/{num_iterations} {progress_note(metrics)}",
        )


def _check_weights(model: MTPModel, iteration: int) -> None:
    """Raise if a weight is not finite: no checkpoint ever holds one."""
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise FloatingPointError(f"iteration {iteration}: the weights of {name} are not finite.")


def _way_back(directory: Path, run_dir: Path) -> str:
    last = latest_checkpoint(directory)
    if last is None:
        return "There is no checkpoint yet; start a new run with a lower agent.ppo.learning_rate."
    return (
        f"The last good checkpoint is {last}. resume={run_dir} repeats what followed it, to the bit on one machine; "
        "if that fails again, start a new run with a lower agent.ppo.learning_rate."
    )
