"""What must hold before anything imagined is trained on, each measured on real episodes that nothing has seen.

* **Disagreement**: the ensemble's mean total variation over the whole imagined batch. Never as a cut of single
  transitions: it would cut the reward, which is rare and so what is disagreed on.
* **Action ratio**: the held-out error with the words of other turns over the real one. A model that ignores what was
  said has a ratio of one, and can be in perfect agreement with itself.
* **Optimism gap**: imagined minus real return, over the last batches. A steady gap of .1 cannot be seen in one batch of
  16 episodes; over eight it can. Each time it exceeds two standard errors, and is large enough to matter, the number
  of imagined batches halves, to zero at last; where it is within one standard error of zero again, or too small to
  matter, the number doubles.
* **Skill**, of ``imagination=latent``: whether the model knows which token is worth more, on average above chance.
"""

from collections import deque
from typing import Any

import torch

from worldmtp.agents.episodes_config import MIN_GAP_BATCHES


class OptimismGap:
    """The running comparison of imagined and real returns, and how many imagined batches it leaves.

    Args:
        window: real batches that it looks back on.
        num_batches: imagined batches at most.
        least: a gap that is no larger shuts nothing, however sure it is; in reward.
    """

    def __init__(self, window: int, num_batches: int, least: float = 0.0) -> None:
        self._gaps: deque[float] = deque(maxlen=window)
        self._most, self._least = num_batches, least
        self.num_batches = num_batches
        """Imagined batches that are trusted now."""

    @property
    def mean(self) -> float:
        """Return the mean gap; zero before the first."""
        return sum(self._gaps) / len(self._gaps) if self._gaps else 0.0

    @property
    def standard_error(self) -> float:
        """Return the standard error of the mean over batches; infinite below two."""
        if len(self._gaps) < 2:
            return float("inf")
        return float(torch.tensor(list(self._gaps), dtype=torch.float64).std()) / len(self._gaps) ** 0.5

    def measure(self, imagined: float, real: float) -> None:
        """Note the mean returns of an imagined batch and of the real one after it, and decide."""
        self._gaps.append(imagined - real)
        if len(self._gaps) < MIN_GAP_BATCHES:
            return
        if self.mean > max(2 * self.standard_error, self._least):
            self.num_batches //= 2
            self._gaps.clear()
        elif self.num_batches < self._most and abs(self.mean) <= max(self.standard_error, self._least):
            self.num_batches = min(self._most, max(1, 2 * self.num_batches))
            self._gaps.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"gaps": list(self._gaps), "num_batches": self.num_batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._gaps.clear()
        self._gaps.extend(float(gap) for gap in state["gaps"])
        self.num_batches = int(state["num_batches"])


class SkillGate:
    """Open where skill, measured on past batches before anything had trained on them, is above chance.

    Args:
        window: batches that it looks back on; before there are as many it is shut.
        gated: off, it opens whatever the skill is, as placebos need; the wait is the same.
    """

    def __init__(self, window: int, gated: bool) -> None:
        self._skills: deque[float] = deque(maxlen=window)
        self._gated = gated

    @property
    def is_open(self) -> bool:
        """Whether the mean skill of the window exceeds two of its standard errors."""
        number = len(self._skills)
        if number < (self._skills.maxlen or 0):
            return False
        skills = torch.tensor(list(self._skills), dtype=torch.float64)
        return not self._gated or float(skills.mean()) > 2 * float(skills.std()) / number**0.5

    def measure(self, skill: float) -> None:
        """Note the skill on a fresh batch."""
        self._skills.append(skill)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"skills": list(self._skills)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._skills.clear()
        self._skills.extend(float(skill) for skill in state["skills"])
