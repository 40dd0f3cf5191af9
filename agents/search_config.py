"""The frozen config of ``imagination=search``; like ``config.py`` it needs no torch."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class SearchTargetConfig:
    """``imagination=search``: the policy learns from a search of its world model, beside PPO on the real answers.

    Biased by whatever the world model gets wrong, so that a gate decides when it is trained on; or ``corrected``, by
    which it cannot bias the policy gradient. The tokens that are looked ahead are ``imagination.horizon``.
    """

    coef: float = 1.0
    """Of the KL from the improved policy to the policy that learns. 0: nothing is searched, and it is plain PPO."""
    num_simulations: int = 16
    """Of each search. 0: nothing is searched, and it is plain PPO."""
    num_states: int = 128
    """States of an iteration's real answers that are searched, drawn without repeats; all, where there are fewer."""
    width: int = 16
    """Likeliest tokens of a node that a search knows; all others of a root are one action, never visited."""
    num_considered: int = 4
    """Tokens of a root that are tried at first, by Gumbel noise and prior; sequential halving goes on with the best."""
    corrected: bool = False
    """Take from the advantage of an action taken what the term gives it, so that no search moves the expected gradient.

    Then it lowers variance where the search is right, and is no shortcut to what the search believes.
    """
    through_replies: bool = False
    """Where a world replies, go on through its replies: those that the run learns, as ``world_model`` says.

    Then the trunk reads the texts, and the heads are not asked; ``imagination.horizon`` counts the policy's tokens.
    Off, a search ends with the policy's turn, at the value of the text there.
    """
    gated: bool = True
    """Off for placebos, whose gate would be shut. They too wait for ``gate_batches``."""
    gate_batches: int = 8
    """Real batches over which skill is averaged: the gate is open where the mean exceeds two standard errors."""

    def __post_init__(self) -> None:
        if not 0 <= self.coef < math.inf:
            raise ValueError(f"coef={self.coef} must be finite and not negative; 0 turns the search off.")
        least = {"num_simulations": 0, "num_states": 1, "width": 1, "num_considered": 1, "gate_batches": 2}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {number}.")

    @property
    def searches(self) -> bool:
        """Whether anything is searched."""
        return self.coef > 0 and self.num_simulations > 0
