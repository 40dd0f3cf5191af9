"""A run from its config to its report, one that goes on, and one that is done, opened again.

    from worldmtp.training import AgentConfig, EnvConfig, ModelConfig, TrainConfig, open_run, run

    result = run(TrainConfig(env=EnvConfig("worldmtp/Reverse-v0"), model=..., agent=...), "runs/mine")
    model, tokenizer, environment, config = open_run("runs/mine")

The stages are in ``pipeline.py``, and studies in ``study.py``; both bring torch and are imported when there is
something to run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from worldmtp.analysis.summary import SUMMARY_FILE, read_summary, summary_table
from worldmtp.training.config import TrainConfig, config_to_dict
from worldmtp.training.imports import import_user_modules
from worldmtp.training.run_dir import (
    MODEL_FOLDER,
    Claim,
    RunResult,
    claim,
    discard_failed_start,
    final_model,
    is_done,
    read_config,
    run_log,
    tell,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from worldmtp.envs import TextVectorEnv
    from worldmtp.model import MTPModel

MAY_DIFFER = ("logger", "profile", "checkpoint", "agent.rollout.num_iterations", "imports")
"""Keys of values that a resumption may change without making it another run."""


def run(config: TrainConfig, directory: Path | str, *, resumes: bool = False) -> RunResult:
    """Train to the end, from where a run in ``directory`` was.

    A directory that holds a run of just this config is taken up again, and one that is done returns what it found.
    A start that fails, before the first file of the run is written, leaves no directory behind.

    Args:
        config: what to train.
        directory: where the run's files go.
        resumes: the directory holds a run that goes on with this config, of which a few values may differ from its own.

    Raises:
        ValueError: the config cannot be trained: the message says what was given, what is expected and what to do.
        FloatingPointError: a loss or a weight is not finite; the message names it and the last good checkpoint.
        CheckpointError: a checkpoint cannot be written, or the last one cannot be read.
        StudyError: arms of a study failed; the message names them.
    """
    run_dir = Path(directory)
    notes: list[str] = []
    if resumes:
        saved = read_config(run_dir)
        check_resumption(run_dir, saved, config)
        notes = resumption_notes(saved, config)
    claimed = claim(run_dir, config_to_dict(config), resumes)
    with claimed:
        try:
            with run_log(run_dir):
                tell(notes)
                return _run(config, run_dir, resumes, claimed)
        except Exception:
            claimed.withdraw()
            discard_failed_start(run_dir)
            raise


def _run(config: TrainConfig, run_dir: Path, resumes: bool, claimed: Claim) -> RunResult:
    if is_done(run_dir) and not resumes:
        return _finished(config, run_dir)
    if config.study:
        from worldmtp.training.study import execute_study

        return execute_study(config, run_dir, claimed.keep)
    from worldmtp.training.pipeline import execute

    if config.post_training.trainer is None:
        return execute(config, run_dir, claimed.keep)
    from worldmtp.training.trl_pipeline import TRLPipeline

    return execute(config, run_dir, claimed.keep, TRLPipeline)


def _finished(config: TrainConfig, run_dir: Path) -> RunResult:
    found = f"{run_dir} is done already; this is what it found."
    if config.study:
        from worldmtp.training.study import finished_study

        study = finished_study(run_dir)
        return RunResult(run_dir, study.headline, f"{found}\n{study.closing}")
    summary = read_summary(run_dir / SUMMARY_FILE)
    return RunResult(run_dir, summary.arms[-1].exact.estimate, f"{found}\n{summary_table(summary)}", summary)


class OpenedRun(NamedTuple):
    """What a run left, to work with.

    Attributes:
        model: the trained model, in evaluation mode on the CPU, with the logits of the environment's tokens alone; of a
            run that has not come to an end yet, that of its warm start.
        tokenizer: as transformers has one; None where the environment's is of a class that has no such form.
        environment: a vector of the run's environment.
        config: the run's config.
    """

    model: "MTPModel"
    tokenizer: "PreTrainedTokenizerBase | None"
    environment: "TextVectorEnv"
    config: TrainConfig


def open_run(directory: Path | str, num_envs: int = 1) -> OpenedRun:
    """Return model, tokenizer, environment of ``num_envs`` rows, and config of a run.

    Raises:
        ValueError: there is no run, it has left no model, or its environment cannot be made.
    """
    from worldmtp.training.make import check_fits, make_env
    from worldmtp.training.saved_model import load_model, transformers_tokenizer

    run_dir = Path(directory)
    config = read_config(run_dir)
    if config.study:
        raise ValueError(f"{run_dir} is a study, which leaves tables and no model; give a training run.")
    warm = run_dir / "sft" / MODEL_FOLDER
    saved = final_model(run_dir) or (warm if warm.is_dir() else None)
    if saved is None:
        raise ValueError(f"{run_dir} has left no model yet; go on with it first, by worldmtp train resume={run_dir}.")
    import_user_modules(config.imports)
    environment = make_env(config.env, num_envs)
    model = load_model(saved, "Run it again.").eval()
    check_fits(model.config, environment)
    model.limit_tokens(environment.tokenizer.vocab_size)
    return OpenedRun(model, transformers_tokenizer(environment.tokenizer), environment, config)


def may_differ(key: str) -> bool:
    """Return whether a resumption may change the value of a dotted key."""
    return any(key == name or key.startswith(f"{name}.") for name in MAY_DIFFER)


def check_resumption(run_dir: Path, saved: TrainConfig, config: TrainConfig) -> None:
    """Raise if the run in ``run_dir`` cannot go on with this config.

    Raises:
        ValueError: a value would make it another run, or it has done more iterations than it is to have.
    """
    changed = _changed_keys(config_to_dict(saved), config_to_dict(config))
    refused = [key for key in changed if not may_differ(key)]
    if refused:
        raise ValueError(
            f"resume={run_dir} goes on with the run as it was, so {refused} cannot be changed; only values of "
            f"{', '.join(MAY_DIFFER)} may differ. Start a new run instead."
        )
    check_iterations(run_dir, config.agent.rollout.num_iterations)


def check_iterations(run_dir: Path, num_iterations: int) -> None:
    """Raise if the run has done more iterations: its model would be that of more than its config says.

    Raises:
        ValueError: it has; the message says how many.
    """
    from worldmtp.checkpoint import checkpoint_step, latest_checkpoint  # torch, which a refusal does not need
    from worldmtp.training.reinforce import CHECKPOINTS

    last = latest_checkpoint(run_dir / CHECKPOINTS)
    done = 0 if last is None else checkpoint_step(last)
    if num_iterations < done:
        raise ValueError(
            f"resume={run_dir} agent.rollout.num_iterations={num_iterations}: this run has done {done} iterations "
            "already, and goes on from there; give at least as many, or start a new run for fewer."
        )


def resumption_notes(saved: TrainConfig, config: TrainConfig) -> list[str]:
    """Return what changed values mean for the numbers of a run that goes on with them."""
    notes = []
    before, after = (one.agent.rollout.num_iterations for one in (saved, config))
    if before != after and config.agent.ppo.anneals_learning_rate and not config.study:
        last = min(before, after) - 1
        notes.append(
            f"agent.rollout.num_iterations={after} was {before}, and the learning rate falls to zero over all "
            f"iterations: from here on it is that of a run of {after}. In iteration {last + 1}, for one, that is "
            f"{1 - last / after:.3g} of agent.ppo.learning_rate, and it was {1 - last / before:.3g}."
        )
    for name in ("device", "num_threads"):
        one, other = getattr(saved.profile, name), getattr(config.profile, name)
        if one != other:
            notes.append(
                f"profile.{name}={other} was {one}: sums are taken in another order, so the numbers from here on are "
                "not to the bit those of a run that was not interrupted."
            )
    return notes


def _changed_keys(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys whose values differ."""
    changed: list[str] = []
    for name in dict.fromkeys([*before, *after]):
        one, other, key = before.get(name), after.get(name), f"{prefix}{name}"
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            changed += _changed_keys(one, other, f"{key}.")
        elif one != other:
            changed.append(key)
    return changed
