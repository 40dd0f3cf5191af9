"""Search by hand, its laws, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldmtp.dynamics import ExactWorldModel, TokenMDP, acting_policy
from worldmtp.search import SearchConfig, gumbel_muzero_policy, muzero_policy
from worldmtp.search.q_transforms import by_parent_and_siblings, completed_by_mixed_value, mixed_value
from worldmtp.search.selection import sequential_halving
from worldmtp.search.tree import Node

POLICY = acting_policy(1.0)


def test_halving_by_hand() -> None:
    # 4 candidates, 8 simulations, 2 phases of 4: each once, then the better two twice more.
    assert sequential_halving(4, 8) == (0, 0, 0, 0, 1, 1, 2, 2)
    # 2 candidates, 5 simulations: one phase, and what is left goes to both in turn.
    assert sequential_halving(2, 5) == (0, 0, 1, 1, 2)
    assert sequential_halving(1, 3) == (0, 1, 2)


@given(st.integers(2, 20), st.integers(1, 80))
def test_halving_spends_the_budget_and_never_skips_a_visit(candidates: int, simulations: int) -> None:
    schedule = sequential_halving(candidates, simulations)
    assert len(schedule) == simulations
    # Whoever is asked for n visits has had 0 .. n - 1 before: somebody was visited at each count.
    assert set(schedule) == set(range(max(schedule) + 1))
    # Whoever goes on has had as many visits as all that go on with him.
    assert list(schedule) == sorted(schedule)


def node_of(**changes: Any) -> Node:
    """Two visited children of three; priors .5, .25, .25."""
    node = Node(
        logits=torch.tensor([[0.5, 0.25, 0.25]]).double().log(),
        raw_value=torch.tensor([2.0]).double(),
        value=torch.tensor([3.0]).double(),
        visits=torch.tensor([4]),
        child_visits=torch.tensor([[1, 2, 0]]),
        q_values=torch.tensor([[6.0, 0.0, 0.0]]).double(),
    )
    return replace(node, **changes)


def test_transforms_by_hand() -> None:
    # Visited: prior .5 of Q 6 and .25 of Q 0, so 4 on average; (2 + 3 * 4) / 4.
    assert mixed_value(node_of()).item() == pytest.approx(3.5, abs=1e-12)
    # Completed 6, 0, 3.5; rescaled 1, 0, 7/12; (50 + 2) * .1.
    expected = [[5.2, 0.0, 5.2 * 3.5 / 6]]
    np.testing.assert_allclose(completed_by_mixed_value(node_of()).numpy(), expected, atol=1e-12)
    # Between 0 and 6, where the unvisited child counts as the least.
    np.testing.assert_allclose(by_parent_and_siblings(node_of()).numpy(), [[1.0, 0.0, 0.0]], atol=1e-12)


def test_two_simulations_by_hand(make_tables: type[Any]) -> None:
    # State 0 leads to 1 (paid 1) or 2 (paid 0); both lead to themselves for nothing. Values: 10, 2, 4; discount .5.
    problem = SimpleNamespace(
        following=np.array([[1, 2], [1, 1], [2, 2]]),
        logits=np.log(np.array([[0.75, 0.25], [0.5, 0.5], [0.5, 0.5]])),
        values=np.array([10.0, 2.0, 4.0]),
        rewards=np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]),
        discounts=np.full((3, 2), 0.5),
        roots=np.array([0]),
    )
    model = make_tables(problem)
    found = gumbel_muzero_policy(model, model.roots, POLICY, SearchConfig(num_simulations=2), gumbel_scale=0.0)
    # Each child once: Q = 1 + .5 * 2 and 0 + .5 * 4, both 2; the root is the mean of 10, 2, 2.
    assert found.tree.root.child_visits.tolist() == [[1, 1]]
    assert found.tree.root.q_values.tolist() == [[2.0, 2.0]]
    assert found.value.item() == pytest.approx(14 / 3, abs=1e-12)
    assert found.weights.tolist() == [pytest.approx([0.75, 0.25], abs=1e-12)]
    assert found.tree.principal_variation().tolist() == [[0]]


@pytest.mark.parametrize(("policy", "name"), [(gumbel_muzero_policy, "gumbel"), (muzero_policy, "noise")])
def test_noise_has_a_row_for_each_root(
    policy: Any, name: str, make_problem: Callable[[int], Any], make_tables: type[Any]
) -> None:
    """One row for three roots would be spread over them by itself."""
    model = make_tables(make_problem(0))
    width = make_problem(0).logits.shape[1]
    with pytest.raises(ValueError, match=rf"{name} has shape \(1, {width}\); expected \(3, {width}\)"):
        policy(model, model.roots, POLICY, SearchConfig(num_simulations=2), **{name: torch.zeros(1, width).double()})


@pytest.mark.parametrize("seed", range(8))
def test_rows_do_not_depend_on_each_other(
    seed: int, make_problem: Callable[[int], Any], make_tables: type[Any]
) -> None:
    problem = make_problem(seed)
    model, config = make_tables(problem), SearchConfig(num_simulations=problem.num_simulations)
    gumbel = torch.randn(3, problem.logits.shape[1], generator=torch.Generator().manual_seed(seed)).double()
    whole = gumbel_muzero_policy(model, model.roots, POLICY, config, gumbel=gumbel)
    for row in range(3):
        alone = gumbel_muzero_policy(
            model, model.roots.select(torch.tensor([row])), POLICY, config, gumbel=gumbel[row : row + 1]
        )
        assert torch.equal(alone.tree.visits[0], whole.tree.visits[row])
        assert torch.equal(alone.weights[0], whole.weights[row])
        assert torch.equal(alone.value[0], whole.value[row])


@pytest.mark.parametrize("seed", range(8))
def test_visits_add_up(seed: int, make_problem: Callable[[int], Any], make_tables: type[Any]) -> None:
    problem = make_problem(seed)
    model, config = make_tables(problem), SearchConfig(num_simulations=problem.num_simulations, max_depth=3)
    tree = muzero_policy(model, model.roots, POLICY, config, torch.Generator().manual_seed(seed)).tree
    assert (tree.visits[:, 0] == problem.num_simulations + 1).all()
    assert (tree.child_visits[:, 0].sum(dim=1) == problem.num_simulations).all()
    assert model.calls == problem.num_simulations
    # The root's value is the mean of the model's own value and of what its edges brought, each with its visits.
    node = tree.root
    mean = (node.raw_value + (node.child_visits * node.q_values).sum(dim=1)) / node.visits
    if problem.num_simulations <= 2:  # with one visit a child, what it brought is what it is worth
        torch.testing.assert_close(node.value, mean, atol=1e-12, rtol=0)


def searched_values(mdp: TokenMDP, logits: torch.Tensor, simulations: int, greedy: bool) -> float:
    """The exact return of the policy that searches in every state, with the exact world model of the prior."""
    model = ExactWorldModel(mdp, logits)
    prefixes = torch.arange(mdp.num_prefixes)
    state = model.encode(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool))
    every = replace(
        state.select(torch.zeros_like(prefixes)), prefixes=prefixes, arriving_reward=torch.zeros(len(prefixes)).double()
    )
    config = SearchConfig(num_simulations=simulations, width=mdp.vocab_size, max_depth=mdp.horizon)
    if greedy:
        found = muzero_policy(model, every, POLICY, config, temperature=0.0, dirichlet_fraction=0.0)
    else:
        found = gumbel_muzero_policy(
            model, every, POLICY, config, torch.Generator(), gumbel_scale=0.0, num_considered=mdp.vocab_size
        )
    if greedy:
        improved = torch.full_like(logits, -torch.inf).scatter(1, found.actions[:, None], 0.0)
    else:
        improved = torch.full_like(logits, -torch.inf).scatter(1, found.tokens, found.weights.log())
    probs = improved[0].softmax(dim=-1)
    return float((probs * mdp.action_values(improved)[0]).sum())


def problem_of(seed: int) -> tuple[TokenMDP, torch.Tensor]:
    """Three tokens of three, every one paid, and a random prior."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(1 + 3 + 9, 3, generator=generator).double()
    return TokenMDP(vocab_size=3, horizon=3, rewards=rewards), torch.randn(13, 3, generator=generator).double()


def best_return(mdp: TokenMDP) -> float:
    """By looking at every episode there is."""
    return float(mdp.episodes().rewards.sum(dim=1).max())


def test_planning_with_exact_dynamics_is_never_worse_than_the_prior_and_gains_with_simulations() -> None:
    gains, gaps = [], []
    for seed in range(6):
        mdp, logits = problem_of(seed)
        prior = float((logits[0].softmax(dim=-1) * mdp.action_values(logits)[0]).sum())
        values = [searched_values(mdp, logits, simulations, greedy=False) for simulations in (1, 2, 4, 8, 16, 32, 64)]
        assert all(value >= prior - 1e-9 for value in values), seed
        gains.append([value - prior for value in values])
        gaps.append(best_return(mdp) - prior)
    # Each problem by itself goes up and down, as more visits also sharpen what fewer had led to; their mean rises.
    means = np.array(gains).mean(axis=0)
    assert (np.diff(means) > 0).all()
    assert means[-1] > 0.6 * np.mean(gaps)


@pytest.mark.parametrize("seed", range(3))
def test_planning_reaches_the_optimum_when_the_tree_is_exhausted(seed: int) -> None:
    """By PUCT, which comes to every leaf that its prior does not exclude; Gumbel's rule leaves some out."""
    mdp, logits = problem_of(seed)
    found = searched_values(mdp, 0.3 * logits, 300, greedy=True)
    assert found == pytest.approx(best_return(mdp), abs=1e-9)


class TestRefusals:
    def test_parallel_heads(self, make_problem: Callable[[int], Any], make_tables: type[Any]) -> None:
        model = make_tables(make_problem(0))
        model.action_conditional = False
        with pytest.raises(TypeError, match="action"):
            gumbel_muzero_policy(model, model.roots, POLICY, SearchConfig(), torch.Generator())

    def test_a_depth_beyond_the_heads(self, make_problem: Callable[[int], Any], make_tables: type[Any]) -> None:
        model = make_tables(make_problem(0), max_horizon=3)
        with pytest.raises(ValueError, match="max_depth=4 is beyond the world model, which takes 3 steps"):
            gumbel_muzero_policy(model, model.roots, POLICY, SearchConfig(max_depth=4), torch.Generator())

    def test_nothing_but_invalid_actions(self, make_problem: Callable[[int], Any], make_tables: type[Any]) -> None:
        problem = make_problem(0)
        model, invalid = make_tables(problem), torch.zeros(3, problem.logits.shape[1], dtype=torch.bool)
        invalid[1] = True
        with pytest.raises(ValueError, match=r"all tokens are invalid in rows \[1\]"):
            muzero_policy(model, model.roots, POLICY, SearchConfig(), torch.Generator(), invalid=invalid)

    @pytest.mark.parametrize("search", [gumbel_muzero_policy, muzero_policy])
    def test_a_prior_that_is_none(
        self, search: Any, make_problem: Callable[[int], Any], make_tables: type[Any]
    ) -> None:
        model = make_tables(make_problem(2))
        model.logits[model.roots.numbers[1], 0] = torch.nan
        with pytest.raises(FloatingPointError, match=r"gave logits that are not finite in rows \[1\]"):
            search(model, model.roots, POLICY, SearchConfig(num_simulations=2), torch.Generator().manual_seed(0))

    def test_more_candidates_than_tokens_are_all_tokens(
        self, make_problem: Callable[[int], Any], make_tables: type[Any]
    ) -> None:
        model = make_tables(make_problem(4))
        config, generator = SearchConfig(num_simulations=8), torch.Generator().manual_seed(0)
        found = gumbel_muzero_policy(model, model.roots, POLICY, config, generator, num_considered=999)
        assert found.tokens.shape == (3, model.logits.shape[1])
        with pytest.raises(ValueError, match="num_considered=0 must be at least 1"):
            gumbel_muzero_policy(model, model.roots, POLICY, config, generator, num_considered=0)

    def test_numbers_that_are_none(self, make_problem: Callable[[int], Any], make_tables: type[Any]) -> None:
        model = make_tables(make_problem(2))
        model.values[:] = torch.nan
        with pytest.raises(FloatingPointError, match="raw_values that are not finite in rows"):
            muzero_policy(model, model.roots, POLICY, SearchConfig(), torch.Generator())

    def test_trees_that_do_not_fit(self, make_problem: Callable[[int], Any], make_tables: type[Any]) -> None:
        model = make_tables(make_problem(0))
        # 3 rows, 33 nodes, 2 slots of 3 * 8 + 4 * 8 bytes and 3 * 8 + 2 * 8 a node, whose state is three numbers.
        assert 3 * 33 * (2 * 56 + 40 + 24) == 17424
        muzero_policy(model, model.roots, POLICY, SearchConfig(max_bytes=17424), torch.Generator())
        arithmetic = r"17,424 bytes: 3 trees x 33 nodes x \(2 edges x 56 \+ 40 \+ 24 .*more than max_bytes=17,423"
        with pytest.raises(ValueError, match=arithmetic):
            muzero_policy(model, model.roots, POLICY, SearchConfig(max_bytes=17423), torch.Generator())

    @pytest.mark.parametrize("change", [{"num_simulations": 0}, {"width": 0}, {"max_depth": 0}])
    def test_configs(self, change: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(change))):
            SearchConfig(**change)

    @pytest.mark.parametrize("gamma", [0.0, -0.5, 1.5, float("nan")])
    def test_a_discount_that_is_none(self, gamma: float) -> None:
        with pytest.raises(ValueError, match=rf"gamma={gamma} must be in \(0, 1\].* Set gamma=1, or what the returns"):
            SearchConfig(gamma=gamma)

    def test_no_noise_and_no_generator(self, make_problem: Callable[[int], Any], make_tables: type[Any]) -> None:
        model = make_tables(make_problem(0))
        with pytest.raises(ValueError, match="generator"):
            gumbel_muzero_policy(model, model.roots, POLICY, SearchConfig())
