"""Search problems in tables, and a world model that reads them."""

import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.dynamics.protocol import Prediction
from worldmtp.dynamics.states import StateTable


@dataclass(frozen=True)
class TableState(StateTable):
    """States by number, and what was paid on the way there."""

    numbers: Int[Tensor, " state"]
    reward: Float[Tensor, " state"]
    continuation: Float[Tensor, " state"]

    @property
    def latent(self) -> Float[Tensor, "state 1"]:
        """The number."""
        return self.numbers[:, None].to(self.reward.dtype)


class TableWorldModel:
    """Deterministic transitions between the numbered states of a problem; ``calls`` counts the steps asked for."""

    action_conditional = True
    models_replies = False

    def __init__(self, problem: Any, max_horizon: int | None = None) -> None:
        self.following = torch.from_numpy(problem.following)
        self.logits = torch.from_numpy(problem.logits)
        self.values = torch.from_numpy(problem.values)
        self.rewards = torch.from_numpy(problem.rewards)
        self.discounts = torch.from_numpy(problem.discounts)
        self.max_horizon = max_horizon
        self.calls = 0
        self.roots = self._state(torch.from_numpy(problem.roots))

    def _state(self, numbers: Tensor) -> TableState:
        return TableState(numbers, torch.zeros(len(numbers)).double(), torch.ones(len(numbers)).double())

    def encode(self, *_: Any, **__: Any) -> TableState:
        """Return the problem's roots."""
        return self.roots

    def step(self, state: TableState, tokens: Int[Tensor, " state"]) -> TableState:
        """Follow the table."""
        self.calls += 1
        at = (state.numbers, tokens)
        return TableState(self.following[at], self.rewards[at], self.discounts[at])

    def predict(self, state: TableState, with_logits: bool = True) -> Prediction:
        """Read the table."""
        logits = self.logits[state.numbers] if with_logits else None
        return Prediction(logits, state.reward, state.continuation, self.values[state.numbers])


@pytest.fixture(scope="session")
def make_problem() -> Callable[[int], Any]:
    """A problem by its seed, as the script that ran mctx made it."""
    made: Callable[[int], Any] = runpy.run_path(str(Path(__file__).parent / "problems.py"))["make_problem"]
    return made


@pytest.fixture(scope="session")
def make_tables() -> type[TableWorldModel]:
    """The world model that reads a problem."""
    return TableWorldModel
