"""When ``imagination=episodes`` explores, and what it is paid for meanwhile.

Before two real returns have differed nothing can be learnt from them. Then imagination explores: what nobody has said
there before, and the ensemble disagrees on, is paid for (``Novelty``; R-max, Brafman and Tennenholtz 2002), and the
next real batch shows what is there. That batch is small (``exploring_prompts``): the policy that acts in it learns
nothing from it, and goes where it has not been only after the model has heard of it. It explores again where the last
real batches were all paid the lowest return there has been: the policy has lost the way.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worldmtp.agents.episodes_config import EpisodesConfig
from worldmtp.dynamics.reply_learning import is_rewarded
from worldmtp.dynamics.turns import Turns, said_after
from worldmtp.envs.imagined_world import Novelty


@dataclass
class Seen:
    """What the real episodes have shown so far."""

    lowest: float = float("inf")
    highest: float = float("-inf")
    most_turns: int = 1
    lowest_in_a_row: int = 0
    """Real batches up to now in which every episode had the lowest return."""

    def observe(self, returns: Float[Tensor, " episode"], turns: Turns) -> None:
        """Note a real batch."""
        self.lowest, self.highest = min(self.lowest, float(returns.min())), max(self.highest, float(returns.max()))
        is_lowest = not bool(is_rewarded(returns, self.lowest).any())
        self.lowest_in_a_row = self.lowest_in_a_row + 1 if is_lowest else 0
        self.most_turns = max(self.most_turns, int(turns.num_turns.max()))

    @property
    def returns_differ(self) -> bool:
        """Whether two real returns have differed."""
        return self.highest > self.lowest + 1e-6


class Exploration:
    """Decides from real returns whether imagination explores, whether PPO waits, and how large a real batch is.

    Args:
        config: of imagined episodes.
        has_model: whether there is a model that may not know something; the real world in its place does not.
    """

    def __init__(self, config: EpisodesConfig, has_model: bool) -> None:
        self._config, self._has_model = config, has_model
        self.seen = Seen()

    @property
    def trains_on_real(self) -> bool:
        """Whether PPO may train on real batches: returns have differed, or it need not wait for that."""
        return self.seen.returns_differ or not self._config.waits_for_reward

    @property
    def is_on(self) -> bool:
        """Whether imagination is paid for what it does not know: no reward was found yet, or the way to it is lost."""
        again = self._config.explores_again_after
        is_lost = 0 < again <= self.seen.lowest_in_a_row
        return (not self.seen.returns_differ or is_lost) and self._config.novelty_bonus > 0 and self._has_model

    def num_prompts(self, usual: int) -> int:
        """Return how many prompts the next real batch has: fewer while it explores and PPO waits."""
        waits = self.is_on and not self.trains_on_real
        return min(usual, self._config.exploring_prompts) if waits else usual

    def novelty(self, turns: Turns, context: str | None) -> Novelty:
        """Return what is paid for, given all real turns and the context that the models have settled for.

        Before the contexts have been compared for long, a history is taken for no reason to try the same words again:
        models that have learnt little differ by chance, and each history is new.
        """
        config, history = self._config, context == "history"
        rows, turn = torch.nonzero(turns.mask, as_tuple=True)
        tried = frozenset(said_after(turns, rows, turn, history))
        return Novelty(config.novelty_threshold, config.novelty_bonus, tried, history)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return asdict(self.seen)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.seen = Seen(**state)


def check_bonus(bonus: float, value_range: tuple[float, float]) -> None:
    """Raise if an imagined episode would be paid what no value bin holds: it would be taken for the end of the range.

    Raises:
        ValueError: the bonus is on and lies outside.
    """
    low, high = value_range
    if bonus and not low <= bonus <= high:
        raise ValueError(
            f"imagination.episodes.novelty_bonus={bonus} lies outside model.value_range=({low}, {high}), which returns "
            "are predicted in; lower the bonus, or widen the range."
        )
