"""What the trunk's reading of the best lines makes of a search: by hand, with exact heads, and with wrong ones."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmtp.dynamics import ExactWorldModel, Policy, TokenMDP, acting_policy
from worldmtp.search import SearchConfig, SearchedPolicy, plan
from worldmtp.search.q_transforms import completed_in_range, visited_in_range
from worldmtp.search.selection import QTransform
from worldmtp.search.tree import UNVISITED, Node
from worldmtp.search.verification import (
    LineReading,
    Lines,
    principal_variations,
    verified_q_values,
    verify,
    visits_by_changed_values,
)

POLICY: Policy = acting_policy(1.0)


def transform_of(rule: str, low: float, high: float) -> QTransform:
    return partial(completed_in_range if rule == "gumbel" else visited_in_range, low=low, high=high)


def begun(model: ExactWorldModel) -> Any:
    """Return the state of the empty prefix."""
    state = model.encode(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool))
    return replace(state, prefixes=torch.zeros(1, dtype=torch.long), arriving_reward=torch.zeros(1).double())


def read(model: ExactWorldModel, lines: Lines) -> LineReading:
    """Return what a world model says along lines of one root, step by step."""
    said = np.zeros((3, *lines.tokens.shape[1:]))
    for line, tokens in enumerate(lines.tokens[0].tolist()):
        state = begun(model)
        for place, token in enumerate(tokens):
            if token == UNVISITED:
                break
            state = model.step(state, torch.tensor([token]))
            heard = model.predict(state)
            said[:, line, place] = float(heard.reward), float(heard.continuation), float(heard.value)
    return LineReading(*torch.from_numpy(said)[:, None])


def random_mdp(seed: int) -> tuple[TokenMDP, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(13, 3, generator=generator, dtype=torch.float64)
    return TokenMDP(3, 3, rewards), torch.randn(13, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("rule", ["gumbel", "puct"])
@pytest.mark.parametrize("simulations", [1, 4, 7, 16, 40])
@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_exact_heads_are_never_overturned_and_their_q_values_stay(
    rule: str, simulations: int, depth: int, seed: int
) -> None:
    """A tree that the exact world model has grown is read again by it, ends and lines that meet them included."""
    mdp, logits = random_mdp(seed)
    model, transform = ExactWorldModel(mdp, logits), transform_of(rule, 0.0, 3.0)
    found = plan(rule, model, begun(model), POLICY, SearchConfig(simulations, depth), q_transform=transform)
    lines = principal_variations(found, 3)
    choice = verify(rule, found, lines, read(model, lines), transform)
    searched = found.tree.root.q_values.gather(1, lines.slots.clamp_min(0))
    visited = found.tree.root.visited.sum()
    assert int(choice.is_line.sum()) == min(3, int(visited))
    torch.testing.assert_close(choice.q_values[choice.is_line], searched[choice.is_line], atol=1e-10, rtol=0)
    assert not choice.is_overturned.any()
    assert torch.equal(choice.actions, found.actions)


@pytest.mark.parametrize("rule", ["gumbel", "puct"])
def test_wrong_heads_are_overturned_to_what_the_trunk_would_choose(rule: str) -> None:
    """Heads say what another token pays: 0, .1 and 1 for the three, where .2, 1 and 0 are true; priors are equal."""
    truth, heads = [0.2, 1.0, 0.0], [0.0, 0.1, 1.0]
    logits = torch.zeros(1, 3, dtype=torch.float64)
    exact, wrong = (
        ExactWorldModel(TokenMDP(3, 1, torch.tensor([paid], dtype=torch.float64)), logits) for paid in (truth, heads)
    )
    transform = transform_of(rule, 0.0, 1.0)
    found = plan(rule, wrong, begun(wrong), POLICY, SearchConfig(12), q_transform=transform)
    assert found.actions.tolist() == [2]
    lines = principal_variations(found, 3)
    choice = verify(rule, found, lines, read(exact, lines), transform)
    by_trunk = plan(rule, exact, begun(exact), POLICY, SearchConfig(12), q_transform=transform)
    assert choice.actions.tolist() == by_trunk.actions.tolist() == [1]
    assert choice.is_overturned.tolist() == [True]
    # One step is all there is, so that the verified values are the true ones.
    tokens = found.tokens[0, lines.slots[0]].tolist()
    torch.testing.assert_close(choice.q_values[0], torch.tensor([truth[token] for token in tokens]).double())
    changes = torch.tensor([truth[token] - heads[token] for token in tokens]).double()
    torch.testing.assert_close(choice.q_change[0], changes)


def chain() -> SearchedPolicy:
    """Two root tokens, 3 visits and 1; below the first a line of two nodes, below each other's sibling nothing."""
    model = ExactWorldModel(
        TokenMDP(2, 3, torch.zeros(7, 2, dtype=torch.float64)), torch.zeros(7, 2, dtype=torch.float64)
    )
    found = plan("puct", model, begun(model), POLICY, SearchConfig(4, 3), q_transform=transform_of("puct", 0.0, 1.0))
    tree = found.tree
    # Node 1 is token 0 of the root, with nodes 2 (token 0) and 3 (token 1) below; node 4 is token 1 of the root.
    tree.children[0] = torch.tensor([[1, 4], [2, 3], [-1, -1], [-1, -1], [-1, -1]])
    tree.child_visits[0] = torch.tensor([[4, 1], [2, 1], [0, 0], [0, 0], [0, 0]])
    tree.visits[0] = torch.tensor([6, 4, 2, 1, 1])
    tree.tokens[0] = torch.tensor([[0, 1]] * 5)
    tree.child_rewards[0] = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0, 0], [0, 0], [0, 0]])
    tree.child_discounts[0] = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0, 0], [0, 0], [0, 0]])
    tree.child_values[0] = torch.tensor([[9.0, 0.8], [9.0, 0.6], [0, 0], [0, 0], [0, 0]])
    return replace(found, actions=torch.tensor([0]), tokens=torch.tensor([[0, 1]]), weights=torch.tensor([[0.8, 0.2]]))


def test_verified_values_by_hand() -> None:
    """The line 0, 0 is read anew: rewards 1 and 2, discounts .5, values 3 and 4; token 1: reward 1, value 2.

    Node 2: visited twice and without children, 4. Node 1: its own value 3 once, node 2 twice at 2 + .5 * 4 = 4, node 3
    once as the tree has it, .4 + .5 * .6 = .7: (3 + 8 + .7) / 4 = 2.925. Q = 1 + .5 * 2.925 = 2.4625. Token 1: 1 + 1.
    """
    found = chain()
    lines = principal_variations(found, 2)
    assert lines.tokens.tolist() == [[[0, 0], [1, UNVISITED]]]
    assert lines.nodes.tolist() == [[[1, 2], [4, UNVISITED]]]
    nothing = float("nan")  # a place that the line does not have
    reading = LineReading(
        rewards=torch.tensor([[[1.0, 2.0], [1.0, nothing]]], dtype=torch.float64),
        discounts=torch.tensor([[[0.5, 0.5], [0.5, nothing]]], dtype=torch.float64),
        values=torch.tensor([[[3.0, 4.0], [2.0, nothing]]], dtype=torch.float64),
    )
    found_values = verified_q_values(found.tree, lines, reading)
    torch.testing.assert_close(found_values, torch.tensor([[2.4625, 2.0]], dtype=torch.float64), atol=1e-6, rtol=0)


def test_lines_begin_with_the_action_and_go_on_by_visits() -> None:
    found = chain()
    assert principal_variations(replace(found, actions=torch.tensor([1])), 1).tokens.tolist() == [[[1]]]
    assert principal_variations(replace(found, actions=torch.tensor([1])), 2).slots.tolist() == [[1, 0]]
    with pytest.raises(ValueError, match="num_lines=0 must be at least 1"):
        principal_variations(found, 0)


def puct_node(prior: list[float], visits: list[int]) -> Node:
    nothing = torch.zeros(1, dtype=torch.float64)
    return Node(
        logits=torch.tensor([prior], dtype=torch.float64).log(),
        raw_value=nothing,
        value=nothing,
        visits=torch.tensor([1 + sum(visits)]),
        child_visits=torch.tensor([visits]),
        q_values=torch.zeros(1, len(prior), dtype=torch.float64),
    )


def test_visits_by_changed_values_by_hand() -> None:
    """Of 9 visits 7 and 2, priors .8 and .3 / 1.1: bonuses are k / 10 each, k = c sqrt(10), and 1 + N is 8 and 3.

    To come to 1 + N of 4 and 7 the bonuses must be k / 10 times 2 and 3 / 7, so that the common number rises by k / 10
    and the second value by k / 10 + 4 / 7 k / 10. The logarithm in c is taken in float32.
    """
    node = puct_node([0.8 / 1.1, 0.3 / 1.1], [7, 2])
    k = 10**0.5 * (1.25 + np.log((10 + 19653) / 19652)) / 1.1
    lines = Lines(torch.tensor([[0, 1]]), torch.ones(1, 2, 1).long(), torch.zeros(1, 2, 1).long())
    change = torch.tensor([[0.0, k / 10 * (1 + 4 / 7)]], dtype=torch.float64)
    visits = visits_by_changed_values(node, change, lines)
    torch.testing.assert_close(visits, torch.tensor([[3.0, 6.0]], dtype=torch.float64), atol=1e-6, rtol=0)


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.lists(st.integers(0, 9), min_size=3, max_size=3))
def test_changed_visits_are_as_many_rise_with_the_value_and_stay_without_a_change(
    changes: list[float], counts: list[int]
) -> None:
    node = puct_node([0.5, 0.3, 0.2], counts)
    lines = Lines(torch.tensor([[0, 1, 2]]), torch.ones(1, 3, 1).long(), torch.zeros(1, 3, 1).long())
    change = torch.tensor([changes], dtype=torch.float64)
    visits = visits_by_changed_values(node, change, lines)
    assert float(visits.sum()) == pytest.approx(sum(counts), abs=1e-6)
    best, worst = int(change.argmax()), int(change.argmin())
    assert float(visits[0, best]) >= counts[best] - 1e-6
    assert float(visits[0, worst]) <= counts[worst] + 1e-6
    assert visits_by_changed_values(node, torch.zeros(1, 3).double(), lines).tolist() == [counts]
    # Values of tokens without a line are the search's.
    alone = Lines(torch.tensor([[0]]), torch.ones(1, 1, 1).long(), torch.zeros(1, 1, 1).long())
    change = torch.tensor([[0.0, *changes[1:]]], dtype=torch.float64)
    assert visits_by_changed_values(node, change, alone).tolist() == [counts]


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [((0.0, 0.0), 0), ((0.0, 0.01), 1), ((0.0, -0.01), 0), ((0.01, 0.01), 0), ((-0.02, -0.03), 0), ((-0.03, -0.02), 1)],
)
def test_a_token_that_halving_has_dropped_needs_a_rise(changes: tuple[float, float], chosen: int) -> None:
    """Visits 2 and 1, equal priors, Q .4 and .5: token 1 scores more, and was dropped. It counts as an equal before.

    So it is chosen where its Q has changed for the better by more than that of token 0.
    """
    found, transform = chain(), transform_of("gumbel", 0.0, 1.0)
    tree = found.tree
    tree.children[0] = torch.tensor([[1, 2]] + [[-1, -1]] * 4)
    tree.child_visits[0] = torch.tensor([[2, 1]] + [[0, 0]] * 4)
    tree.visits[0] = torch.tensor([4, 2, 1, 0, 0])
    tree.child_rewards[0, 0], tree.child_discounts[0, 0] = torch.zeros(2), torch.ones(2)
    tree.child_values[0, 0] = torch.tensor([0.4, 0.5])
    lines = principal_variations(found, 2)
    said = torch.tensor([[[0.4 + changes[0]], [0.5 + changes[1]]]], dtype=torch.float64)
    choice = verify("gumbel", found, lines, LineReading(0 * said, 0 * said + 1, said), transform)
    assert choice.actions.tolist() == [chosen]
    assert choice.is_overturned.tolist() == [chosen == 1]
