"""Trees as nodes to read, against the arrays they come from."""

from collections.abc import Callable
from typing import Any

import pytest

from worldmtp.dynamics import acting_policy
from worldmtp.search import SearchConfig, plan
from worldmtp.search.explain import TreeNode, line_of, tree_of


def count(nodes: tuple[TreeNode, ...]) -> int:
    return sum(1 + count(node.children) for node in nodes)


@pytest.mark.parametrize("rule", ["gumbel", "puct"])
def test_a_tree_is_what_the_search_did(rule: str, make_problem: Callable[[int], Any], make_tables: type[Any]) -> None:
    problem = make_problem(5)
    model = make_tables(problem)
    found = plan(rule, model, model.roots, acting_policy(1.0), SearchConfig(num_simulations=24))
    for row in range(3):
        nodes = tree_of(found, row)
        assert sum(node.visits for node in nodes) == 24
        assert [node.visits for node in nodes] == sorted((node.visits for node in nodes), reverse=True)
        (chosen,) = (node for node in nodes if node.is_chosen)
        assert chosen.token == int(found.actions[row])
        # Every node that was made is there; a simulation that ends where one has ended before makes none.
        assert count(nodes) == int((found.tree.parents[row] >= 0).sum())
        state = int(problem.roots[row])
        for node in nodes:
            following, discount = problem.following[state, node.token], problem.discounts[state, node.token]
            assert node.is_end == (discount == 0)
            assert node.is_end <= (not node.children)
            if node.visits == 1:
                expected = problem.rewards[state, node.token] + discount * problem.values[following]
                assert node.q == pytest.approx(expected, abs=1e-12)
        line = line_of(nodes, 3)
        assert line[0] == chosen.token
        assert line_of(nodes, 1) == line[:1]
        for token in line[1:]:
            most = max(node.visits for node in chosen.children)
            (chosen,) = (node for node in chosen.children if node.is_chosen)
            assert (chosen.token, chosen.visits) == (token, most)
