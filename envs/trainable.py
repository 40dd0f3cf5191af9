"""What training, evaluation and the command line ask of a vector environment of text."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from worldmtp.envs.problem import TextProblem
from worldmtp.envs.scoring import Scorer
from worldmtp.envs.task import Example, Task
from worldmtp.envs.tokenizer import Tokenizer


@runtime_checkable
class TextVectorEnv(Protocol):
    """``TextGenVectorEnv``, which is the contract in words, and ``StackedVectorEnv`` of a user's own environments."""

    num_envs: int
    metadata: dict[str, Any]
    problem: TextProblem

    @property
    def task(self) -> Task:
        """What is asked and scored."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back."""
        ...

    @property
    def scorer(self) -> Scorer:
        """With ``counters``."""
        ...

    @property
    def max_new(self) -> int:
        """The longest episode, in steps."""
        ...

    @property
    def eos_terminates(self) -> bool:
        """Whether EOS ends the text and nothing else but the budget does."""
        ...

    def examples(
        self, split: str, num_examples: int, seed: int, purpose: str = "pool", fewer: bool = False
    ) -> list[Example]:
        """Distinct examples of a split, by the stream of a purpose; more of them begin with the fewer."""
        ...

    def overlap(self) -> float:
        """Share of the held-out pool's prompts that the training pool has."""
        ...

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Gymnasium's, with the options of ``TextGenVectorEnv``."""
        ...

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Gymnasium's."""
        ...

    def state(self) -> dict[str, Any]:
        """A JSON-able snapshot of all that decides the episodes to come."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> Any:
        """Go on from a snapshot."""
        ...
