"""Texts that end while they are searched: with EOS, with the room, with the policy's turn."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from worldmtp.dynamics import acting_policy
from worldmtp.search import SearchConfig, TurnWorldModel, plan
from worldmtp.search.turns import TurnState

POLICY, EOS = acting_policy(1.0), 1


@pytest.fixture
def world(make_tables: type[Any]) -> Any:
    """State 0 leads to 1 (paid 1) by token 0 and to 2 (paid 2) by EOS; 1 and 2 to themselves, for 3. Values 5, 6, 8."""
    problem = SimpleNamespace(
        following=np.array([[1, 2], [1, 1], [2, 2]]),
        logits=np.zeros((3, 2)),
        values=np.array([5.0, 6.0, 8.0]),
        rewards=np.array([[1.0, 2.0], [3.0, 3.0], [3.0, 3.0]]),
        discounts=np.full((3, 2), 0.5),
        roots=np.array([0]),
    )
    return make_tables(problem)


def search(world: Any, ends_episode: bool, room: int, gamma: float = 1.0) -> Any:
    turns = TurnWorldModel(world, [EOS], ends_episode, gamma)
    state = TurnState(torch.tensor([room]), world.roots)
    return plan("puct", turns, state, POLICY, SearchConfig(num_simulations=64, max_depth=4, gamma=gamma))


def by_token(found: Any, values: torch.Tensor) -> list[float]:
    return torch.zeros_like(values).scatter(1, found.tokens, values)[0].tolist()


@pytest.mark.parametrize(
    ("ends_episode", "gamma", "after_eos"),
    [(True, 1.0, 2.0), (False, 1.0, 2.0 + 0.5 * 8.0), (False, 0.5, 2.0 + 0.5 * 0.5 * 8.0)],
)
def test_an_end_is_worth_what_is_known_of_it(world: Any, ends_episode: bool, gamma: float, after_eos: float) -> None:
    found = search(world, ends_episode, room=9, gamma=gamma)
    tree = found.tree
    assert by_token(found, tree.root.q_values)[EOS] == pytest.approx(after_eos, abs=1e-12)
    # Nothing is below a node that EOS led to, wherever it is, and more than one such node was come to again.
    ends = (tree.child_discounts == 0) & (tree.child_visits > 0)
    assert int(ends.sum()) > 1
    below = tree.children[ends]
    assert (tree.child_visits[0, below] == 0).all()
    assert (tree.child_discounts[~ends & (tree.child_visits > 0)] == 0.5 * gamma).all()


def test_the_last_token_of_a_turn_ends_it_as_eos_does(world: Any) -> None:
    found = search(world, ends_episode=False, room=1)
    assert by_token(found, found.tree.root.q_values) == [pytest.approx(1 + 0.5 * 6.0), pytest.approx(2 + 0.5 * 8.0)]
    assert (found.tree.children[0, 1:] == -1).all()
    # Where the episode ends with it, what was paid is all.
    found = search(world, ends_episode=True, room=1)
    assert by_token(found, found.tree.root.q_values) == [1.0, 2.0]
    # With room for two more tokens, what the second brings is seen.
    found = search(world, ends_episode=True, room=2)
    assert by_token(found, found.tree.child_discounts[:, 0]) == [0.5, 0.0]
    assert (found.tree.child_visits[0, 1:].sum(dim=1) > 0).any()


def test_a_turn_that_is_over_is_refused(world: Any) -> None:
    turns = TurnWorldModel(world, [EOS], ends_episode=True)
    with pytest.raises(ValueError, match="room has 0; a turn that is over"):
        turns.limited(turns.encode(torch.zeros(1, 1).long(), torch.ones(1, 1).bool()), torch.tensor([0]))


def test_a_rule_that_is_none_is_refused(world: Any) -> None:
    with pytest.raises(ValueError, match="gumbel"):
        plan("gumbell", world, world.roots, POLICY, SearchConfig())
