"""What may differ when a run is taken up again, and what a changed value means for its numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldmtp.training.config import TrainConfig, config_to_dict

MAY_DIFFER = ("logger", "profile", "checkpoint", "agent.rollout.num_iterations", "imports")
"""Keys of values that a resumption may change without making it another run."""


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
