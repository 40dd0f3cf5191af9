"""A task: where prompts come from and what an answer is worth. It knows no tokens, no batches and no gymnasium."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64


@dataclass(frozen=True)
class Example:
    """A question. ``answer`` is the oracle's, a demonstration; None where a task has none to show."""

    prompt: str
    answer: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> str:
        """Blake2b of the prompt: who has the same prompt has the same key, whatever seed made it."""
        return hashlib.blake2b(self.prompt.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Score:
    """What an answer is worth.

    ``reason`` says why in one word: "ok", or the task's own, such as "containment"; the environment and the scorer give
    "no_eos", "error" and "timeout". ``exact`` is whether the task counts as solved, which metrics report.

    Raises:
        ValueError: if the value is not a finite number.
    """

    value: float
    components: Mapping[str, float] = field(default_factory=dict, hash=False)
    reason: str = "ok"
    exact: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"Score(value={self.value}) must be finite; give a failed answer a number, such as 0.0.")


@runtime_checkable
class Task(Protocol):
    """Two verbs. All randomness comes from ``rng``.

    A task may carry ``probe_bound: float``, the largest mean value that content-free text may earn (default 0); the
    checks hold it to that.
    """

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        """A question. Whether it belongs to ``split`` is decided by the hash of its prompt, not here."""
        ...

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """What ``text`` is worth as an answer; ``ids`` are its tokens as they were generated, EOS included."""
        ...
