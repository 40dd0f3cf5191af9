"""What a trainer of TRL's reports, under the tags of this project's metrics, and the moments between its steps.

Numbers that the agent logs, too, have the agent's tags, so that reports and TensorBoard show both alike; all others
have ``trl/`` before TRL's own name.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from worldmtp.tracking import MetricWriter
from worldmtp.training.reinforce import StoppedEarly

_OF_AGENT = {
    "reward": "rollout/return_mean",
    "reward_std": "rollout/return_std",
    "env/exact": "rollout/exact_mean",
    "completions/mean_length": "rollout/length_mean",
    "completions/clipped_ratio": "rollout/truncated_fraction",
    "frac_reward_zero_std": "rollout/same_return_group_fraction",
    "mtp/tokens_per_forward": "rollout/tokens_per_forward",
    "ppo/policy_loss": "losses/policy",
    "ppo/value_loss": "losses/value",
    "ppo/approx_kl": "losses/approx_kl",
    "ppo/clip_fraction": "losses/clip_fraction",
    "ppo/ratio_max": "losses/ratio_max",
    "ppo/advantage_mean": "losses/advantage_mean",
    "ppo/advantage_std": "losses/advantage_std",
    "ppo/explained_variance": "losses/explained_variance",
    "entropy": "losses/entropy",
    "grad_norm": "losses/grad_norm",
    "learning_rate": "losses/learning_rate",
    "env/scorer_errors": "env/scorer_errors",
    "env/scorer_timeouts": "env/scorer_timeouts",
}
_BY_AGENTS_NAMES = ("imagination/", "world_model/")
"""What the agent's own code has measured."""
_OF_THIS_PROCESS = ("num_tokens", "step_time")
"""Counted from the trainer's last start on, or by the clock: a resumed run would state them wrongly."""


def tagged(logs: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of one log record by tag."""
    return {
        name if name.startswith(_BY_AGENTS_NAMES) else _OF_AGENT.get(name, f"trl/{name}"): float(value)
        for name, value in logs.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in _OF_THIS_PROCESS
    }


class StepCallback(TrainerCallback):
    """Log each step, say how far the trainer is, and evaluate after a step, before its checkpoint is written.

    Args:
        writer: where the numbers go, at the optimiser step.
        report: is told the fraction done and a note.
        evaluate: is called with the steps done; returns the seconds that went into analysis.
        stop_after: a step at which to stop, as if killed.
        run_dir: for the message of that.

    ``seconds_of_numbers`` is set when there is a trainer: it returns the seconds that its numbers took since the last
    call.
    """

    def __init__(
        self,
        writer: MetricWriter,
        report: Callable[[float, str], None],
        evaluate: Callable[[int], float],
        stop_after: int | None,
        run_dir: Path,
    ) -> None:
        self._writer, self._report, self._evaluate = writer, report, evaluate
        self._stop_after, self._run_dir = stop_after, run_dir
        self._start = 0.0
        self.seconds_of_numbers: Callable[[], float] = lambda: 0.0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the numbers of a step; the last record, of the whole training, is of this process alone."""
        if logs and "train_runtime" not in logs:
            self._writer.scalars(tagged(logs), state.global_step)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop where that was asked for."""
        if self._stop_after is not None and state.global_step >= self._stop_after:
            raise StoppedEarly(f"stopped after step {state.global_step}; go on with resume={self._run_dir}")
        self._start = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluate, log what share of the step went into analysis, and report."""
        seconds, analysing = time.perf_counter() - self._start, self._evaluate(state.global_step)
        share = (self.seconds_of_numbers() + analysing) / (seconds + analysing)
        self._writer.scalars({"time/analysis_fraction": share}, state.global_step)
        self._report(state.global_step / state.max_steps, f"step {state.global_step}/{state.max_steps}")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put on disk what was logged up to the checkpoint."""
        self._writer.flush()
