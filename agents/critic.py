"""The critic ladder: small networks of growing appetite, each admitted only by its skill on batches it never saw.

A rung is a two-layer perceptron from features of (state, candidate) to the return of the episode, trained by binary
cross-entropy on returns scaled to [0, 1], from a replay of the actions really taken. Every rung learns; the highest one
whose held-out r2 beats that of the rungs below serves. A few hundred weights on the policy's own surprisals beat a
critic with a trunk of its own at the sizes measured so far (docs/results.md), which is why the ladder starts there.
"""

from collections import deque
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldmtp.agents.regression import RunningMean, RunningSlope


class RungCritic(nn.Module):
    """Q^(s, a) as a share of the return range: features -> logit."""

    def __init__(
        self, num_features: int, hidden_size: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.inner = nn.Linear(num_features, hidden_size, dtype=dtype)
        self.outer = nn.Linear(hidden_size, 1, dtype=dtype)
        for parameter, fan_in in ((self.inner.weight, num_features), (self.outer.weight, hidden_size)):
            nn.init.normal_(parameter, std=fan_in**-0.5, generator=generator)
        nn.init.zeros_(self.inner.bias)
        nn.init.zeros_(self.outer.bias)

    def forward(self, features: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch"]:
        """Logit of the scaled return."""
        return self.outer(torch.tanh(self.inner(features)))[..., 0]


class Rung:
    """A critic, its optimiser, its replay, and its skill so far."""

    def __init__(
        self,
        num_features: int,
        hidden_size: int,
        learning_rate: float,
        replay_batches: int,
        slope_decay: float,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._device = torch.device(device)
        self.critic = RungCritic(num_features, hidden_size, generator, dtype).to(self._device)
        self.optimizer = torch.optim.Adam(self.critic.parameters(), lr=learning_rate)
        self.slope = RunningSlope(decay=slope_decay)
        self.skill = RunningMean(decay=slope_decay)
        self.num_measured = 0
        self._replay: deque[tuple[Tensor, Tensor]] = deque(maxlen=replay_batches)

    def remember(self, features: Float[Tensor, "sample features"], targets: Float[Tensor, " sample"]) -> None:
        """Keep what was really taken, with its return in [0, 1]."""
        weight = self.critic.inner.weight
        self._replay.append((features.detach().to(weight), targets.detach().to(weight)))

    def train(self, num_updates: int, batch_size: int, generator: torch.Generator) -> float:
        """Gradient steps on uniform draws of the replay; the mean loss."""
        if not self._replay or num_updates == 0:
            return 0.0
        features = torch.cat([kept for kept, _ in self._replay])
        targets = torch.cat([kept for _, kept in self._replay])
        total = 0.0
        for _ in range(num_updates):
            rows = torch.randint(len(targets), (min(batch_size, len(targets)),), generator=generator)
            loss = nn.functional.binary_cross_entropy_with_logits(self.critic(features[rows]), targets[rows])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total += float(loss.detach())
        return total / num_updates

    def measure(self, r2: float, correction: Float[Tensor, " episode"], target: Float[Tensor, " episode"]) -> None:
        """Take a fresh batch's skill in, after it has been used."""
        self.skill.update(r2)
        self.slope.update(correction, target)
        self.num_measured += 1

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {
            "critic": self.critic.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "slope": self.slope.state_dict(),
            "skill": self.skill.state_dict(),
            "num_measured": self.num_measured,
            "replay": [list(kept) for kept in self._replay],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore."""
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.slope.load_state_dict(state["slope"])
        self.skill.load_state_dict(state["skill"])
        self.num_measured = int(state["num_measured"])
        self._replay.clear()
        for features, targets in state["replay"]:
            self.remember(features, targets)


def serving_rung(rungs: list[Rung], min_batches: int) -> int | None:
    """The rung that serves, by the skill of past batches; None keeps the gate shut.

    Climbing from the lowest, a rung is admitted where its r2 is positive and above the best of those below it.
    """
    serving, best = None, 0.0
    for index, rung in enumerate(rungs):
        if rung.num_measured >= min_batches and rung.skill.mean > best:
            serving, best = index, rung.skill.mean
    return serving
