"""The losses of one token that have no logits, and the accepted length: values worked by hand, gradients, dtypes."""

import pytest
import torch

from worldmtp.objective.token_losses import acceptance_gradient, expected_accepted_length, smooth_l1_per_token


@pytest.mark.parametrize(
    ("acceptance", "length", "gradient"),
    [
        # 1/2 + 1/2 1/4 + 1/2 1/4 0;  by a_1: 1 + 1/4 + 0, by a_2: 1/2 (1 + 0), by a_3: 1/8.
        ((0.5, 0.25, 0.0), 0.625, (1.25, 0.5, 0.125)),
        # A zero ends what follows, and its own derivative is what it keeps from coming: by a_1: 1 + 1/2 + 1/2.
        ((0.0, 0.5, 1.0), 0.0, (2.0, 0.0, 0.0)),
        ((0.0, 0.0), 0.0, (1.0, 0.0)),
        # All accepted: K, and depth j is in K + 1 - j products.
        ((1.0, 1.0, 1.0), 3.0, (3.0, 2.0, 1.0)),
        ((0.5,), 0.5, (1.0,)),
    ],
)
def test_expected_length_and_its_gradient_by_hand(acceptance, length, gradient):
    acceptance = torch.tensor([acceptance], dtype=torch.float64)
    assert expected_accepted_length(acceptance).tolist() == [length]
    assert acceptance_gradient(acceptance).tolist() == [list(gradient)]


def test_acceptance_gradient_is_the_derivative(generator):
    acceptance = torch.rand(50, 6, generator=generator, dtype=torch.float64).requires_grad_()
    total = sum(acceptance[:, :k].prod(dim=-1) for k in range(1, 7)).sum()  # the naive products
    (expected,) = torch.autograd.grad(total, acceptance)
    assert torch.allclose(acceptance_gradient(acceptance.detach()), expected, rtol=0, atol=1e-14)


def test_equal_acceptance_gives_the_geometric_series():
    # Leviathan et al. 2023, eq. 1: tau = (1 - a^(K+1)) / (1 - a); a = 1/2, K = 3: 1.875.
    assert expected_accepted_length(torch.full((3,), 0.5, dtype=torch.float64)).item() == 1.875 - 1.0


def test_smooth_l1_by_hand():
    latent, target = torch.tensor([1.0, 0.0, 5.0, -1.0]), torch.tensor([0.5, 0.0, 2.0, 2.0])
    # differences .5, 0, 3, -3.  beta 1: .125 + 0 + 2.5 + 2.5 over 4;  beta 4: (.25 + 9 + 9) / 8 over 4.
    assert smooth_l1_per_token(latent, target).item() == 5.125 / 4
    assert smooth_l1_per_token(latent, target, beta=4.0).item() == 18.25 / 32


def test_smooth_l1_refuses_beta_zero():
    with pytest.raises(ValueError, match=r"beta=0.0 is where the squared part ends; it must be positive"):
        smooth_l1_per_token(torch.zeros(2), torch.zeros(2), beta=0.0)


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64,) * 2]
)
def test_half_precision_is_computed_in_float32(dtype, expected, generator):
    one, other = (torch.randn(4, 9, generator=generator).to(dtype) for _ in range(2))
    found = smooth_l1_per_token(one, other)
    assert found.dtype == expected
    assert torch.equal(found, smooth_l1_per_token(one.to(expected), other.to(expected)))


def test_gradients_of_both_arguments(generator):
    one, other = (torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(smooth_l1_per_token, (one, other))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
