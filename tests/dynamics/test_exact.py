"""The enumerable token MDP against brute force, and the exact world model in it."""

import pytest
import torch
from torch import Tensor

from worldmtp.dynamics import ExactWorldModel, TokenMDP, acting_policy, imagine
from worldmtp.returns import value_expansion


def make_mdp(vocab_size: int, horizon: int, eos: int | None, seed: int) -> tuple[TokenMDP, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    num_prefixes = sum(vocab_size**length for length in range(horizon))
    rewards = torch.randn((num_prefixes, vocab_size), generator=generator, dtype=torch.float64)
    logits = torch.randn((num_prefixes, vocab_size), generator=generator, dtype=torch.float64)
    return TokenMDP(vocab_size, horizon, rewards, eos), logits


def test_two_tokens_two_steps_by_hand() -> None:
    # Prefixes: 0 = (), 1 = (0), 2 = (1). Uniform policy.
    # r((), .) = (0, 1), r((0), .) = (2, 4), r((1), .) = (6, 8)
    # Q((0), .) = (2, 4), V = 3; Q((1), .) = (6, 8), V = 7; Q((), .) = (0 + 3, 1 + 7) = (3, 8)
    mdp = TokenMDP(2, 2, torch.tensor([[0.0, 1], [2, 4], [6, 8]], dtype=torch.float64))
    logits = torch.zeros((3, 2), dtype=torch.float64)
    assert mdp.action_values(logits).tolist() == [[3, 8], [2, 4], [6, 8]]
    # Gradient: occupancy * pi * (Q - V): root V = 5.5 -> 0.5 * (-2.5, 2.5); others 0.5 * 0.5 * (-1, 1)
    assert mdp.policy_gradient(logits).tolist() == [[-1.25, 1.25], [-0.25, 0.25], [-0.25, 0.25]]
    assert len(mdp.episodes().rewards) == 4


@pytest.mark.parametrize(("vocab_size", "horizon", "eos"), [(2, 4, None), (3, 3, 1), (5, 3, 0)])
def test_enumerated_gradient_is_the_derivative_of_the_enumerated_return(
    vocab_size: int, horizon: int, eos: int | None
) -> None:
    mdp, logits = make_mdp(vocab_size, horizon, eos, seed=3)
    logits.requires_grad_(True)
    episodes = mdp.episodes()
    probability = episodes.probability(logits)
    assert float(probability.detach().sum()) == pytest.approx(1.0, abs=1e-12)
    expected_return = (probability * episodes.rewards.sum(dim=1)).sum()
    (gradient,) = torch.autograd.grad(expected_return, logits)
    torch.testing.assert_close(mdp.policy_gradient(logits.detach()), gradient, atol=1e-12, rtol=0)


@pytest.mark.parametrize("eos", [None, 2])
def test_oracle_dynamics_leave_no_value_expansion_error_at_any_horizon(eos: int | None) -> None:
    """E[T_h] over imagined actions equals V(s) for every h, once all imagined branches are enumerated."""
    mdp, logits = make_mdp(3, 4, eos, seed=1)
    world = ExactWorldModel(mdp, logits)
    values = (logits.softmax(-1) * mdp.action_values(logits)).sum(-1)
    root = world.encode(torch.zeros((1, 1), dtype=torch.long), torch.ones((1, 1), dtype=torch.bool))
    assert int(root.prefixes[0]) == 1  # the prefix (0)
    for horizon in range(1, 5):
        # Every sequence of `horizon` actions is one branch, weighted by its probability under the policy.
        branches = torch.cartesian_prod(*[torch.arange(3)] * horizon).view(-1, horizon)
        state = root.select(torch.zeros(len(branches), dtype=torch.long))
        weight = torch.ones(len(branches), dtype=torch.float64)
        rewards, discounts, reached = [], [], [world.predict(state).value]
        for h in range(horizon):
            log_policy = acting_policy(1.0)(world.predict(state).logits)
            weight = weight * log_policy.gather(1, branches[:, h : h + 1])[:, 0].exp()
            state = world.step(state, branches[:, h])
            read = world.predict(state)
            rewards.append(read.reward)
            discounts.append(read.continuation)
            reached.append(read.value)
        expanded = value_expansion(torch.stack(rewards, 1), torch.stack(discounts, 1), torch.stack(reached, 1))
        expected = (weight[:, None] * expanded).sum(0)
        torch.testing.assert_close(expected, values[1].expand(horizon + 1), atol=1e-12, rtol=0)


def test_one_step_misalignment_of_the_rewards_fails_that_test() -> None:
    mdp, logits = make_mdp(3, 3, None, seed=1)
    late = TokenMDP(3, 3, mdp.rewards.roll(1, dims=0))
    values = (logits.softmax(-1) * mdp.action_values(logits)).sum(-1)
    wrong = (logits.softmax(-1) * late.action_values(logits)).sum(-1)
    assert float((values[0] - wrong[0]).abs()) > 0.01


def test_imagined_returns_average_to_the_value() -> None:
    mdp, logits = make_mdp(4, 3, None, seed=5)
    world = ExactWorldModel(mdp, logits)
    count = 20_000
    root = world.encode(torch.zeros((1, 1), dtype=torch.long), torch.ones((1, 1), dtype=torch.bool))
    branches = root.select(torch.zeros(count, dtype=torch.long))
    imagined = imagine(world, branches, 2, acting_policy(1.0), torch.Generator().manual_seed(0))
    returns = value_expansion(imagined.rewards, imagined.continuations, imagined.values)[:, -1]
    values = (logits.softmax(-1) * mdp.action_values(logits)).sum(-1)
    # Two-sided z-test at 4.5 standard errors: false alarm below 1e-5, and the seed is fixed.
    assert abs(float(returns.mean() - values[1])) < 4.5 * float(returns.std()) / count**0.5


def test_after_the_end_nothing_is_paid_and_nothing_is_worth_anything() -> None:
    """Two tokens of which 1 ends the episode, in prefix () at once; every action in every prefix pays 5."""
    mdp = TokenMDP(2, 3, torch.full((7, 2), 5.0), eos=1)
    world = ExactWorldModel(mdp, torch.zeros((7, 2)))
    state = world.encode(torch.zeros((1, 1), dtype=torch.long), torch.ones((1, 1), dtype=torch.bool))
    read = []
    for action in (1, 0, 1):
        state = world.step(state, torch.tensor([action]))
        prediction = world.predict(state)
        read.append([float(prediction.reward), float(prediction.continuation), float(prediction.value)])
    assert read == [[5.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_rewards_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rewards has shape \(3, 3\); 3 tokens and horizon 2 need \(4, 3\)"):
        TokenMDP(3, 2, torch.zeros((3, 3)))


def test_horizons_are_checked_at_the_border() -> None:
    mdp, logits = make_mdp(2, 2, None, seed=0)
    world = ExactWorldModel(mdp, logits)
    root = world.encode(torch.zeros((1, 1), dtype=torch.long), torch.ones((1, 1), dtype=torch.bool))
    with pytest.raises(ValueError, match="horizon=0 must be at least 1"):
        imagine(world, root, 0, acting_policy(1.0), None)
