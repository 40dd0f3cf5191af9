"""The warm start's objective: checked against the model before anything is trained, and handed on as plain values."""

from typing import Any

from worldmtp.cli.given import ObjectiveConfig, given
from worldmtp.objective import MTPObjective
from worldmtp.objective.plan import Progress


def checked_objective(config: ObjectiveConfig, num_depths: int) -> dict[str, Any] | None:
    """The fields that were given, for ``MTPSFTConfig(mtp_objective=...)``; None where there are none.

    Raises:
        ValueError: a name is unknown (the nearest is suggested), a value is out of range, fields exclude each other, or
            the window reaches beyond the model's depths.
    """
    values = given(config)
    try:
        MTPObjective.from_dict(values).plan(num_depths, Progress(step=0, max_steps=1), seed=0)
    except ValueError as error:
        raise ValueError(f"objective: {error}") from error
    return values or None
