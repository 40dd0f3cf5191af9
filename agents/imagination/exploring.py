"""When ``imagination=episodes`` explores, and what it is paid for meanwhile.

Before two real returns have differed nothing can be learnt from them. Then imagination explores: what nobody has said
there before, and the ensemble disagrees on, is paid for (``Novelty``; R-max, Brafman and Tennenholtz 2002), and the
next real batch shows what is there. That batch is small (``exploring_prompts``): the policy that acts in it learns
nothing from it, and goes where it has not been only after the model has heard of it.

A reward that was found is not yet learnt: one lucky episode, and the policy may not come by it again. So imagination
explores again, and real batches are small, where the last real ones were all paid the lowest return there has been and
an imagined batch of the policy of now is, too. By then PPO trains on real batches: what is found again is in them.

A way that was found is seldom the best one, and PPO does not leave it: the model knows too little of what lies beside
it to say that it is better. So imagination stays optimistic after the first reward (``optimism``): what is disagreed on
and was hardly tried is paid nearly the best return that there has been.
"""

from collections import Counter
from typing import Any

import torch

from worldmtp.agents.episodes_config import EpisodesConfig
from worldmtp.agents.imagination.known_replies import KnownReplies
from worldmtp.dynamics.turns import Turns, said_after
from worldmtp.envs.imagined_world import Novelty


class Exploration:
    """Decides from real returns whether imagination explores, whether PPO waits, and how large a real batch is.

    Args:
        config: of imagined episodes.
        known: what there has been; the real world in a model's place leaves nothing to explore.
    """

    def __init__(self, config: EpisodesConfig, known: KnownReplies) -> None:
        self._config, self._known = config, known
        self._is_lost = False

    @property
    def trains_on_real(self) -> bool:
        """Whether PPO may train on real batches: returns have differed, or it need not wait for that."""
        return self._known.seen.returns_differ or not self._config.waits_for_reward

    @property
    def is_on(self) -> bool:
        """Whether imagination is paid for what it does not know: no reward was found yet, or the way to it is lost."""
        return (not self._known.seen.returns_differ or self._is_lost) and self._can_explore

    @property
    def may_be_lost(self) -> bool:
        """Whether real batches of late earned nothing, so that an imagined one is to be asked (``ask``)."""
        again, seen = self._config.explores_again_after, self._known.seen
        return seen.returns_differ and 0 < again <= seen.lowest_in_a_row and self._can_explore

    @property
    def _can_explore(self) -> bool:
        return self._config.novelty_bonus > 0 and not self._known.is_real

    def ask(self, imagined_is_lost: bool) -> None:
        """Note for this iteration whether the policy of now has lost the way in imagination, too."""
        self._is_lost = imagined_is_lost

    def num_prompts(self, usual: int) -> int:
        """Return how many prompts the next real batch has: fewer while it explores, unless PPO waits for no reward."""
        is_small = self.is_on and self._config.waits_for_reward
        return min(usual, self._config.exploring_prompts) if is_small else usual

    def novelty(self, turns: Turns, context: str | None) -> Novelty:
        """Return what is paid for, given all real turns and the context that the models have settled for.

        Before the contexts have been compared for long, a history is taken for no reason to try the same words again:
        models that have learnt little differ by chance, and each history is new.
        """
        config, history = self._config, context == "history"
        tried = _tried(turns, history, least_by_chance=1)
        return Novelty(config.novelty_threshold, config.novelty_bonus, tried, history)

    def optimism(self, turns: Turns, context: str | None) -> Novelty | None:
        """Return what is paid once returns have differed, given the same; None where imagination is not optimistic.

        Replies that were never heard are no reason by themselves: in a world of chance a model foretells some always.
        """
        config, seen, history = self._config, self._known.seen, context == "history"
        if not (seen.returns_differ and config.known_after_tries and config.optimism) or self._known.is_real:
            return None
        paid = seen.lowest + config.optimism * (seen.highest - seen.lowest)
        tried = _tried(turns, history, config.known_after_tries)
        return Novelty(config.novelty_threshold, paid, tried, history, pays_unheard=False)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"is_lost": self._is_lost}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._is_lost = bool(state["is_lost"])


def _tried(turns: Turns, history: bool, least_by_chance: int) -> frozenset[tuple[int, ...]]:
    """Return the keys of the turns that were had often enough (``said_after``).

    Once is enough in a world that has always done the same after the same, as far as anything was said there twice;
    else ``least_by_chance`` times.
    """
    rows, turn = torch.nonzero(turns.mask, as_tuple=True)
    counts = Counter(keys := said_after(turns, rows, turn, history))
    heard = zip(turns.replies[rows, turn].tolist(), turns.rewards[rows, turn].tolist(), strict=True)
    outcomes = {(key, tuple(reply), reward) for key, (reply, reward) in zip(keys, heard, strict=True)}
    least = 1 if len(outcomes) == len(counts) else least_by_chance
    return frozenset(key for key, count in counts.items() if count >= least)


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
