"""Where an iteration's time goes, from the log of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_PHASES = ("rollout", "env", "world_model", "imagination", "update")
_TITLES = {
    "rollout": "acting",
    "env": "environment with scoring",
    "world_model": "world model",
    "imagination": "imagination",
    "update": "PPO update",
}


@dataclass(frozen=True)
class TimeBreakdown:
    """Mean seconds of an iteration, and the share of each phase in it."""

    iteration_seconds: float
    shares: dict[str, float]

    def __str__(self) -> str:
        parts = ", ".join(f"{_TITLES[phase]} {share:.1%}" for phase, share in self.shares.items())
        return f"an iteration took {self.iteration_seconds:.2f} s: {parts}"


def time_breakdown(records: Sequence[Mapping[str, Any]]) -> TimeBreakdown | None:
    """The breakdown over all iterations in a log; None if there are none."""
    timed = [record for record in records if record.get("time/total_seconds")]
    if not timed:
        return None
    total = float(np.mean([record["time/total_seconds"] for record in timed]))
    means = {phase: float(np.mean([record.get(f"time/{phase}_seconds", 0.0) for record in timed])) for phase in _PHASES}
    return TimeBreakdown(total, {phase: seconds / total for phase, seconds in means.items()})
