"""The best play of gymnasium's toy-text games, by dynamic programming over turns.

Of FrozenLake, Taxi and CliffWalking gymnasium gives the transitions, ``P``. With T turns and what a game is worth that
ends in turn t with reward r, ``worth(t, r)``, the value of state s before turn t is

    V_T(s) = 0,    V_t(s) = max_a sum_k p_k (worth(t, r_k) if the game ends, else V_{t+1}(s_k)).

What was collected before must be known from t alone, so a step whose reward is not the usual one counts as lost: an
illegal pick-up of Taxi, which the best player never makes, and a fall from the cliff, after which nothing is left to
earn. In Blackjack the dealer's sum has a distribution, by recursion over draws from an endless deck.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int

Transitions = Mapping[int, Mapping[int, Sequence[tuple[Any, Any, Any, Any]]]]
"""gymnasium's ``P``: by state and action (probability, next state, reward, whether the game ends)."""

Hand = tuple[int, bool]
"""The sum, a usable ace counted as 11, and whether there is one."""

_AS_GOOD = 1e-12  # two sums of the same probabilities in another order
_BUST, _DEALER_STANDS = 21, 17
_CARDS = tuple((card, (4 if card == 10 else 1) / 13) for card in range(1, 11))


def best_play(
    transitions: Transitions, num_turns: int, usual: float, worth: Callable[[int, float], float]
) -> tuple[Float[np.ndarray, "turn_plus_1 state"], Int[np.ndarray, "turn state"]]:
    """Return V_t(s) for t = 0 .. T and the best action of each turn and state: of those as good the one soonest over.

    ``usual`` is the reward of a step that neither ends the game nor is punished; ``worth`` is that of a game that ends
    in turn t, counted from 0, with a reward.
    """
    num_states, num_actions = len(transitions), len(transitions[0])
    width = max(len(branches) for by_action in transitions.values() for branches in by_action.values())
    shape = (num_states, num_actions, width)
    probability, reward = np.zeros(shape), np.zeros(shape)
    follows, ends = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    for state, by_action in transitions.items():
        for action, branches in by_action.items():
            for index, branch in enumerate(branches):
                at = state, action, index
                probability[at], follows[at], reward[at], ends[at] = branch
    goes_on = ~ends & (reward == usual)
    values = np.zeros((num_turns + 1, num_states))
    actions = np.zeros((num_turns, num_states), dtype=np.int64)
    turns_left = np.zeros(num_states)
    rewards = np.unique(reward[ends])
    for turn in reversed(range(num_turns)):
        paid = np.zeros(shape)
        for one in rewards:
            paid[ends & (reward == one)] = worth(turn, float(one))
        quality = (probability * np.where(goes_on, values[turn + 1][follows], paid)).sum(axis=2)
        duration = 1.0 + (probability * np.where(ends, 0.0, turns_left[follows])).sum(axis=2)
        duration[quality < quality.max(axis=1, keepdims=True) - _AS_GOOD] = np.inf
        values[turn], actions[turn] = quality.max(axis=1), duration.argmin(axis=1)
        turns_left = duration.min(axis=1)
    return values, actions


class BestHand:
    """The best play of a hand of Blackjack with ``num_turns`` decisions, and what it is worth.

    Args:
        worth: of gymnasium's reward, -1, 0 or 1.
    """

    def __init__(self, worth: Callable[[float], float]) -> None:
        self._worth = worth
        self._value = lru_cache(maxsize=None)(self._value_of)

    def value(self, hand: Hand, dealer: int, num_turns: int) -> float:
        """What the best player earns with this hand on average, the dealer showing a card."""
        return self._value(hand, dealer, num_turns)

    def sticks(self, hand: Hand, dealer: int, num_turns: int) -> bool:
        """Whether sticking is as good as another card, or better."""
        stick, hit = self._choices(hand, dealer, num_turns)
        return stick >= hit

    def _value_of(self, hand: Hand, dealer: int, num_turns: int) -> float:
        return max(self._choices(hand, dealer, num_turns)) if num_turns > 0 else 0.0

    def _choices(self, hand: Hand, dealer: int, num_turns: int) -> tuple[float, float]:
        outcomes = dealer_sums(dealer)
        stick = sum(chance * self._worth(float(_beats(hand[0], total))) for total, chance in outcomes.items())
        hit = 0.0
        for card, chance in _CARDS:
            held = with_card(hand, card)
            hit += chance * (self._worth(-1.0) if held[0] > _BUST else self._value(held, dealer, num_turns - 1))
        return stick, hit


def with_card(hand: Hand, card: int) -> Hand:
    """Return the hand with another card; an ace counts 11 where that does not exceed 21."""
    total, has_usable_ace = hand
    hard = total - 10 * has_usable_ace + card
    can_use = (has_usable_ace or card == 1) and hard + 10 <= _BUST
    return hard + 10 * can_use, can_use


@cache
def dealer_sums(card: int) -> dict[int, float]:
    """Return the distribution of the dealer's final sum, who shows a card; sums beyond 21 are 22."""
    return _dealer_from(with_card((0, False), card))


@cache
def _dealer_from(hand: Hand) -> dict[int, float]:
    if hand[0] >= _DEALER_STANDS:
        return {min(hand[0], _BUST + 1): 1.0}
    sums: dict[int, float] = {}
    for card, chance in _CARDS:
        for total, further in _dealer_from(with_card(hand, card)).items():
            sums[total] = sums.get(total, 0.0) + chance * further
    return sums


def _beats(mine: int, dealers: int) -> int:
    """Return 1 where the player wins, 0 for a draw, -1 where the dealer does."""
    return 1 if dealers > _BUST else (mine > dealers) - (mine < dealers)


def read_hand(text: str) -> tuple[Hand, int]:
    """Return the hand and the dealer's card of ``14:6`` or ``18a6``."""
    mark = "a" if "a" in text else ":"
    total, _, dealer = text.partition(mark)
    return (int(total), mark == "a"), int(dealer)
