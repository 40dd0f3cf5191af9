"""The reinforcement stage: iterations with checkpoints, so that a kill at any moment loses nothing that was saved."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from worldmtp.cli.schema import CheckpointConfig
from worldmtp.tracking import MetricWriter

CHECKPOINTS = "checkpoints"


class StoppedEarly(RuntimeError):
    """``checkpoint.stop_after`` was reached; the run can be resumed."""


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint's content: the trainer's state, and the step up to which the log belongs to it."""

    trainer: dict[str, Any]
    step: int


def load_last(run_dir: Path) -> SavedRun | None:
    """The newest checkpoint of a run, or None where it has none yet.

    Raises:
        CheckpointError: it is corrupt; the message names the newest intact one.
    """
    last = latest_checkpoint(run_dir / CHECKPOINTS)
    if last is None:
        return None
    saved = load_checkpoint(last)
    return SavedRun(trainer=saved["trainer"], step=int(saved["step"]))


def reinforce(
    trainer: ImaginationTrainer,
    num_iterations: int,
    run_dir: Path,
    config: CheckpointConfig,
    writer: MetricWriter,
    evaluate: Callable[[int], None],
    report: Callable[[float, str], None],
) -> None:
    """Run to ``num_iterations`` from where ``trainer`` is.

    The x axis is environment tokens. A checkpoint of iteration n is
    written when n iterations are done and before anything later is logged, so metrics after it can be dropped.

    Raises:
        FloatingPointError: a loss is not finite; the message names the iteration, the term and the last checkpoint.
    """
    directory = run_dir / CHECKPOINTS
    while trainer.iteration < num_iterations:
        if config.stop_after is not None and trainer.iteration >= config.stop_after:
            raise StoppedEarly(f"stopped after iteration {trainer.iteration}; go on with resume={run_dir}")
        try:
            metrics, _ = trainer.step()
        except FloatingPointError as error:
            raise FloatingPointError(f"{error} {_way_back(directory, run_dir)}") from error
        step = int(trainer.totals["env/tokens"])
        writer.scalars(metrics, step)
        evaluate(step)
        if trainer.iteration % config.every_iterations == 0 or trainer.iteration == num_iterations:
            writer.flush()
            save_checkpoint(
                directory, trainer.iteration, {"trainer": trainer.state_dict(), "step": step}, config.keep_last
            )
        report(
            trainer.iteration / num_iterations,
            f"iteration {trainer.iteration}/{num_iterations} exact {metrics['rollout/exact_mean']:.3f}",
        )


def _way_back(directory: Path, run_dir: Path) -> str:
    last = latest_checkpoint(directory)
    if last is None:
        return "There is no checkpoint yet; lower agent.ppo.learning_rate and start again."
    return f"The last good checkpoint is {last}; resume={run_dir} goes on from there."
