"""``worldmtp-train``: warm start, PPO with imagination, held-out evaluation, analysis, in one resumable run directory.

    worldmtp-train experiment=quickstart
    worldmtp-train env=spell_backward imagination=off agent.ppo.learning_rate=1e-4 seed=1
    worldmtp-train head=latent objective=nextlat model.depth=6
    worldmtp-train experiment=head_families profile.num_jobs=2
    worldmtp-train resume=runs/quickstart/2026-01-31_12-00-00_seed0

The stages are in ``pipeline.py``, and studies in ``study.py``; both bring torch and are imported when there is
something to run.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from worldmtp.analysis.summary import SUMMARY_FILE, read_summary
from worldmtp.cli.clean_exit import message_of
from worldmtp.cli.launch import fail_cleanly, launch
from worldmtp.cli.resume import resume_argument, resumed_config, resumption_notes, saved_config
from worldmtp.cli.run_dir import CONFIG_FILE, Claim, claim, is_done
from worldmtp.cli.run_log import run_log, tell
from worldmtp.cli.schema import TrainConfig, build


def main() -> None:
    """Console script."""
    resumed = resume_argument(sys.argv[1:])
    if resumed is None:
        launch(_train, "train")
    else:
        run_dir, overrides = resumed
        fail_cleanly(lambda: _resume(run_dir, overrides))


def _train(config: DictConfig) -> float:
    if config.resume is not None:
        raise ValueError(f"resume={config.resume} stands in a config file; give it on the command line.")
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        return run(config, run_dir)
    except Exception as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            # The other jobs go on, and at their end Hydra raises the first failure alone.
            print(f"error in {run_dir}: {message_of(error)}", file=sys.stderr)
        raise


def _resume(run_dir: Path, overrides: Sequence[str]) -> float:
    config = resumed_config(run_dir, overrides)
    return run(config, run_dir, resumes=True, notes=resumption_notes(saved_config(run_dir), config))


def run(node: DictConfig, run_dir: Path, resumes: bool = False, notes: Sequence[str] = ()) -> float:
    """Train to the end, from where a run in ``run_dir`` was; the held-out exact match, or a study's headline.

    Raises:
        ValueError: the config cannot be: the message says what was given, what is expected and what to do.
        FloatingPointError: a loss or a weight is not finite; the message names it and the last good checkpoint.
        CheckpointError: a checkpoint cannot be written, or the last one cannot be read.
        StudyError: arms of a study failed; the message names them.
    """
    try:
        config = build(TrainConfig, node)
        claimed = claim(run_dir, node, resumes)
    except Exception:
        if (run_dir / CONFIG_FILE).exists():  # another's run, whose log stays as it is
            raise
        with run_log(run_dir):
            raise
    with claimed, run_log(run_dir):
        tell(notes)
        return _run(config, run_dir, resumes, claimed)


def _run(config: TrainConfig, run_dir: Path, resumes: bool, claimed: Claim) -> float:
    if is_done(run_dir) and not resumes:
        print(f"{run_dir} is done already; this is what it found.")
        return _finished(config, run_dir)
    if config.study:
        from worldmtp.cli.study import execute_study

        return execute_study(config, run_dir, claimed.keep)
    from worldmtp.cli.pipeline import execute

    return execute(config, run_dir, claimed.keep)


def _finished(config: TrainConfig, run_dir: Path) -> float:
    if not config.study:
        return read_summary(run_dir / SUMMARY_FILE).arms[-1].exact.estimate
    from worldmtp.cli.study import finished_study

    return finished_study(run_dir)
