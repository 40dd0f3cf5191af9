"""Running regressions: slopes learnt on batches that have passed, so that using one on the next adds no bias."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class RunningSlope:
    """Least-squares slope through the origin, sum x y / sum x^2, forgetting old batches by ``decay`` a batch.

    Until it has seen data the slope is ``initial``. The slope is clipped to [``low``, ``high``].
    """

    decay: float = 0.9
    initial: float = 0.0
    low: float = 0.0
    high: float = 1.0
    cross: float = 0.0
    square: float = 0.0

    @property
    def slope(self) -> float:
        """The clipped slope of all batches so far."""
        if self.square <= 0:
            return self.initial
        return min(max(self.cross / self.square, self.low), self.high)

    def update(self, x: Float[Tensor, " sample"], y: Float[Tensor, " sample"]) -> None:
        """Take a batch in; samples count alike within it."""
        self.cross = self.decay * self.cross + float((x * y).double().mean())
        self.square = self.decay * self.square + float((x * x).double().mean())

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint needs."""
        return {"cross": self.cross, "square": self.square}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore."""
        self.cross, self.square = float(state["cross"]), float(state["square"])


@dataclass
class RunningMean:
    """Bias-corrected exponential moving average (Kingma & Ba 2015, algorithm 1)."""

    decay: float = 0.9
    total: float = 0.0
    weight: float = 0.0

    @property
    def mean(self) -> float:
        """The average; zero before any data."""
        return self.total / self.weight if self.weight > 0 else 0.0

    def update(self, value: float) -> None:
        """Take a value in."""
        self.total = self.decay * self.total + (1 - self.decay) * value
        self.weight = self.decay * self.weight + (1 - self.decay)

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint needs."""
        return {"total": self.total, "weight": self.weight}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore."""
        self.total, self.weight = float(state["total"]), float(state["weight"])


def explained_share(residual: Float[Tensor, " sample"], target: Float[Tensor, " sample"]) -> float:
    """r2 = 1 - Var(residual) / Var(target); zero where the target does not vary."""
    variance = float(target.double().var(unbiased=False))
    return 1.0 - float(residual.double().var(unbiased=False)) / variance if variance > 0 else 0.0


def correlation(x: Float[Tensor, " sample"], y: Float[Tensor, " sample"]) -> float:
    """Pearson's r; zero where either does not vary."""
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    scale = float(torch.linalg.vector_norm(x) * torch.linalg.vector_norm(y))
    return float((x * y).sum()) / scale if scale > 0 else 0.0
