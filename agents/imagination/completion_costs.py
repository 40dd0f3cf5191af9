"""Whether more real answers would be the better buy than imagined ones, by what a run has measured.

Let r2_0 be what the best rung without completions explains of the returns' variance, and r2_c what that with them
does. The residuals that the policy gradient is left with have 1 - r2 of the variance, so that

    m = (1 - r2_0) / (1 - r2_c)

times the real answers, without completions, would leave as much noise in their mean. That is the most that completions
can be worth: of the gradient's variance, a part is which prompts were drawn, and no critic of tokens removes it. A real
answer takes its share of the seconds of acting, scoring and learning. So where even (m - 1) times those seconds are
fewer than the completions took, more real answers are the better buy, if prompts and scores cost nothing else. What it
takes to train the heads is in neither.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldmtp.agents.imagination.completions import COMPLETIONS_RUNG

_REAL = tuple(f"time/{phase}_seconds" for phase in ("rollout", "env", "update"))
_SPENT = "time/completion_seconds"


@dataclass(frozen=True)
class CompletionCosts:
    """Means of an iteration, in seconds, and the skill of the critics without and with completions."""

    real_seconds: float
    completion_seconds: float
    r2_without: float
    r2_with: float

    @property
    def as_many(self) -> float:
        """Return m: real answers that would do without completions what one does with them, at most."""
        with_ = min(self.r2_with, 1 - 1e-6)
        return max(1.0, (1 - max(self.r2_without, 0.0)) / (1 - with_))

    @property
    def recommends_answers(self) -> bool:
        """Whether so many more real answers take fewer seconds."""
        return (self.as_many - 1) * self.real_seconds < self.completion_seconds

    def __str__(self) -> str:
        spent = (
            f"completions took {self.completion_seconds:.2f} s an iteration, as much as "
            f"{self.completion_seconds / self.real_seconds:.1f} times its real answers, and lifted r2 from "
            f"{self.r2_without:.2f} to {self.r2_with:.2f}"
        )
        if self.r2_with <= 0:
            return f"{spent}: nothing is to be seen of them yet"
        if not self.recommends_answers:
            return f"{spent}; as little noise by real answers alone would take up to {self.as_many:.1f} times as many"
        return (
            f"{spent}; {self.as_many:.1f} times the real answers at most would do the same in less time: where prompts "
            "and scores are free, set imagination.completions=none and raise agent.rollout.num_prompts"
        )


def completion_costs(records: Sequence[Mapping[str, Any]]) -> CompletionCosts | None:
    """Return the costs over the second half of a log's iterations; None if nothing was completed."""
    iterations = [record for record in records if record.get(_SPENT) is not None]
    iterations = iterations[len(iterations) // 2 :]
    if not iterations:
        return None

    def mean(tag: str) -> float:
        return float(np.mean([record.get(tag) or 0.0 for record in iterations]))

    below = [f"imagination/rung_{rung}/r2" for rung in range(COMPLETIONS_RUNG)]
    return CompletionCosts(
        real_seconds=sum(mean(tag) for tag in _REAL),
        completion_seconds=mean(_SPENT),
        r2_without=max(mean(tag) for tag in below),
        r2_with=mean(f"imagination/rung_{COMPLETIONS_RUNG}/r2"),
    )
