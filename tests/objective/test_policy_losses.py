"""The sum of PPO's terms and the clipping of values, by hand; the losses per token are tested with the agent's."""

import math

import pytest
import torch

from worldmtp.objective.policy_losses import ppo_loss, ppo_terms, value_moves


def test_terms_are_means_over_the_steps_of_the_whole_by_hand():
    """Two steps and one that is none; ratios 3/2 (clipped at 6/5) and 1/2, advantages 1 and 1; half of a whole of 4."""
    new, old = torch.tensor([[0.6, 0.2, 0.5]]).log(), torch.tensor([[0.4, 0.4, 0.5]]).log()
    reference = torch.tensor([[0.3, 0.4, 0.1]]).log()
    ones, mask = torch.ones(1, 3), torch.tensor([[True, True, False]])
    terms = ppo_terms(new, old, reference, ones, 2 * ones, 3 * ones, mask, torch.tensor(4), 0.2)
    expected = {
        "losses/policy": -(1.2 + 0.5) / 4,
        "losses/kl_reference": ((0.5 + math.log(2) - 1) + (2 - math.log(2) - 1)) / 4,
        "losses/entropy": 2 * 2 / 4,
        "losses/value": 3 * 2 / 4,
        "losses/ratio_max": 1.5,
        "losses/approx_kl": ((0.5 - math.log(1.5)) + (-0.5 - math.log(0.5))) / 4,
        "losses/clip_fraction": 2 / 4,
    }
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, abs=1e-6)
    loss = ppo_loss(terms, vf_coef=0.5, kl_coef=0.1, ent_coef=0.01)
    by_hand = -1.7 / 4 + 0.5 * 1.5 + 0.1 * (0.5) / 4 - 0.01 * 1.0
    assert loss.item() == pytest.approx(by_hand, abs=1e-6)
    imagined = {"losses/counterfactual": torch.tensor(7.0), "losses/search": torch.tensor(5.0)}
    assert ppo_loss(terms | imagined, vf_coef=0.5).item() == pytest.approx(7 + 5 - 1.7 / 4 + 0.75, abs=1e-6)


def test_weights_of_actions_count_in_the_policys_means_alone_by_hand():
    """As above, the first action weighing 2 and the second 3; what stands where no step is counts nowhere."""
    new, old = torch.tensor([[0.6, 0.2, 0.5]]).log(), torch.tensor([[0.4, 0.4, 0.5]]).log()
    reference = torch.tensor([[0.3, 0.4, 0.1]]).log()
    ones, mask = torch.ones(1, 3), torch.tensor([[True, True, False]])
    given = new, old, reference, ones, 2 * ones, 3 * ones, mask, torch.tensor(4), 0.2
    terms, unweighted = ppo_terms(*given, torch.tensor([[2.0, 3.0, 9.0]])), ppo_terms(*given)
    expected = {
        "losses/policy": -(2 * 1.2 + 3 * 0.5) / 4,
        "losses/kl_reference": (2 * (0.5 + math.log(2) - 1) + 3 * (2 - math.log(2) - 1)) / 4,
        "losses/approx_kl": (2 * (0.5 - math.log(1.5)) + 3 * (-0.5 - math.log(0.5))) / 4,
    }
    for name, value in terms.items():
        assert value.item() == pytest.approx(expected.get(name, unweighted[name].item()), abs=1e-6), name
    for name, value in ppo_terms(*given, ones).items():
        assert torch.equal(value, unweighted[name]), name


def test_a_term_of_coefficient_zero_may_be_infinite():
    terms = {"losses/policy": torch.tensor(1.0), "losses/value": torch.tensor(0.0)}
    terms |= {"losses/kl_reference": torch.tensor(math.inf), "losses/entropy": torch.tensor(math.nan)}
    assert ppo_loss(terms, vf_coef=1.0).item() == 1.0


@pytest.mark.parametrize(
    ("value", "old", "target", "moves"),
    [
        (0.1, 0.0, 1.0, True),  # within the clip
        (0.5, 0.0, 1.0, False),  # went far enough towards its target
        (-0.5, 0.0, 1.0, True),  # went far away from it: pulled back
        (0.5, 0.0, 0.2, True),  # beyond a target that the clip reaches: pulled back
        (0.2, 0.0, 1.0, True),  # at the border
    ],
)
def test_where_a_clipped_value_moves(value, old, target, moves):
    numbers = [torch.tensor([number], dtype=torch.float64) for number in (value, old, target)]
    assert value_moves(*numbers, 0.2).tolist() == [moves]


def test_the_clipped_squares_gradient_is_that_of_the_larger_square():
    """Against the formula of Schulman's code, max((v - R)^2, (clip(v) - R)^2), by autograd."""
    source = torch.Generator().manual_seed(0)
    values, old, targets = (torch.randn(200, generator=source, dtype=torch.float64) for _ in range(3))
    values.requires_grad_()
    near = old + (values - old).clamp(-0.3, 0.3)
    ((values - targets) ** 2).maximum((near - targets) ** 2).sum().backward()
    expected = values.grad
    moves = value_moves(values.detach(), old, targets, 0.3)
    inside = (values.detach() - old).abs() <= 0.3  # where the two are one, and so are their gradients
    torch.testing.assert_close(torch.where(moves | inside, 2 * (values.detach() - targets), 0.0), expected)
    assert 0 < int(moves.sum()) < 200
