"""What a difference of Q values is measured by: the node's own range, or that of all returns."""

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmtp.dynamics import acting_policy
from worldmtp.search import SearchConfig, plan
from worldmtp.search.acting import acting_logprobs
from worldmtp.search.q_transforms import (
    by_parent_and_siblings,
    completed_by_mixed_value,
    completed_in_range,
    visited_in_range,
)
from worldmtp.search.tree import Node

POLICY = acting_policy(1.0)


def node_of(q_values: list[float], visits: list[int], prior: list[float], value: float) -> Node:
    double = torch.float64
    return Node(
        logits=torch.tensor([prior], dtype=double).log(),
        raw_value=torch.tensor([value], dtype=double),
        value=torch.tensor([value], dtype=double),
        visits=torch.tensor([1 + sum(visits)]),
        child_visits=torch.tensor([visits]),
        q_values=torch.tensor([q_values], dtype=double),
    )


def bandit(prior: list[float], rewards: list[float], value: float) -> SimpleNamespace:
    """Each action is paid and ends the episode."""
    width = len(prior)
    return SimpleNamespace(
        following=np.ones((2, width), dtype=np.int64),
        logits=np.log(np.array([prior, [1 / width] * width])),
        values=np.array([value, 0.0]),
        rewards=np.array([rewards, [0.0] * width]),
        discounts=np.zeros((2, width)),
        roots=np.array([0]),
    )


def test_visited_in_range_by_hand() -> None:
    # Visited: priors .5 of Q .8 and .3 of Q .2, (.4 + .06) / .8 = .575 on average, which the third child gets.
    node = node_of([0.8, 0.2, 0.0], [1, 2, 0], [0.5, 0.3, 0.2], value=0.6)
    np.testing.assert_allclose(visited_in_range(node, 0.0, 2.0).numpy(), [[0.4, 0.1, 0.2875]], atol=1e-12)
    np.testing.assert_allclose(visited_in_range(node, -1.0, 1.0).numpy(), [[0.9, 0.6, 0.7875]], atol=1e-12)
    # By the node: .2 and .8 are its ends, and the third child counts as the worst.
    np.testing.assert_allclose(by_parent_and_siblings(node).numpy(), [[1.0, 0.0, 0.0]], atol=1e-12)
    # Where nothing was visited, the node's own value: .6 of 0 to 2.
    fresh = node_of([0.0, 0.0, 0.0], [0, 0, 0], [0.5, 0.3, 0.2], value=0.6)
    np.testing.assert_allclose(visited_in_range(fresh, 0.0, 2.0).numpy(), [[0.3, 0.3, 0.3]], atol=1e-12)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.floats(0, 1), st.floats(-3, 3), st.floats(0.1, 5))
def test_where_a_node_reaches_from_end_to_end_both_scales_agree(
    between: list[float], value: float, low: float, width: float
) -> None:
    """All children are visited, the worst is worth the least return and the best the largest."""
    q_values = [low + width * one for one in (0.0, *between, 1.0)]
    prior = [1 / len(q_values)] * len(q_values)
    node = node_of(q_values, [1] * len(q_values), prior, low + width * value)
    by_returns = {"low": low, "high": low + width}
    torch.testing.assert_close(visited_in_range(node, **by_returns), by_parent_and_siblings(node), atol=1e-12, rtol=0)
    sigma = completed_in_range(node, **by_returns) - completed_by_mixed_value(node)
    torch.testing.assert_close(sigma, torch.zeros_like(sigma), atol=1e-5, rtol=0)


def test_puct_by_hand_keeps_to_the_prior_where_little_lies_between(make_tables: type[Any]) -> None:
    """Priors .6 and .4, Q .50 and .52, returns between 0 and 1; the exploration constant is 1.25 to 3 digits.

    By returns: .75 against .5, action 0 | an unvisited child counts .5 too, so sqrt(2) 1.25 (.6 / 2) = .53 against
    .71, action 1 | .5 + 2.17 * .3 = 1.15 against .52 + 2.17 * .2 = .95, action 0. By the node the last one is
    0 + .65 against 1 + .43: action 1, the better one by .02.
    """
    model, config = make_tables(bandit([0.6, 0.4], [0.5, 0.52], 0.508)), SearchConfig(num_simulations=3)
    by_returns = partial(visited_in_range, low=0.0, high=1.0)
    found = plan("puct", model, model.roots, POLICY, config, q_transform=by_returns)
    assert found.tree.root.child_visits.tolist() == [[2, 1]]
    assert found.actions.tolist() == [0]
    by_node = plan("puct", model, model.roots, POLICY, config)
    assert by_node.tree.root.child_visits.tolist() == [[1, 2]]
    assert by_node.actions.tolist() == [1]
    # Where returns lie between .5 and .52, they are worth that difference, and it is the node's again.
    narrow = partial(visited_in_range, low=0.5, high=0.52)
    assert plan("puct", model, model.roots, POLICY, config, q_transform=narrow).actions.tolist() == [1]


@pytest.mark.parametrize("worth", [0.0, 0.3, 1.0])
def test_where_all_q_values_are_equal_the_prior_alone_decides(worth: float, make_tables: type[Any]) -> None:
    """Visits are those of bonuses sqrt(N) c(N) pi / (1 + n) alone, counted here; Gumbel's rule acts by the policy."""
    prior = [0.47, 0.29, 0.14, 0.1]
    visits = [0, 0, 0, 0]
    for simulation in range(24):
        total = simulation + 1
        constant = math.sqrt(total) * (1.25 + math.log((total + 19653) / 19652))
        bonuses = [constant * pi / (1 + count) for pi, count in zip(prior, visits, strict=True)]
        visits[bonuses.index(max(bonuses))] += 1
    model, config = make_tables(bandit(prior, [worth] * 4, value=0.5)), SearchConfig(num_simulations=24)
    by_returns = partial(visited_in_range, low=0.0, high=1.0)
    found = plan("puct", model, model.roots, POLICY, config, q_transform=by_returns)
    assert found.tree.root.child_visits.tolist() == [visits]
    assert visits == sorted(visits, reverse=True)
    sigma = partial(completed_in_range, low=0.0, high=1.0)
    found = plan("gumbel", model, model.roots, POLICY, config, q_transform=sigma)
    log_policy = torch.tensor([prior], dtype=torch.float64).log()
    torch.testing.assert_close(acting_logprobs("gumbel", found, log_policy, sigma), log_policy, atol=1e-12, rtol=0)
