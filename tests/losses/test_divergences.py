"""Divergences of one token: values worked by hand, reductions, gradients, dtypes."""

import math

import pytest
import torch

from worldmtp.divergences import (
    acceptance_gradient,
    cross_entropy_per_token,
    entropy_per_token,
    expected_accepted_length,
    kl_per_token,
    smooth_l1_per_token,
    total_variation_per_token,
)


def logits_of(*probs: float) -> torch.Tensor:
    return torch.tensor(probs, dtype=torch.float64).log()


# q = (1/2, 1/4, 1/4), p = (1/4, 1/4, 1/2):
#   KL(p || q) = 1/4 log(1/2) + 0 + 1/2 log 2 = 1/4 log 2;  min = (1/4, 1/4, 1/4), so 3/4 are accepted and TV = 1/4.
Q, P = logits_of(0.5, 0.25, 0.25), logits_of(0.25, 0.25, 0.5)


def test_cross_entropy_by_hand():
    labels = torch.tensor([0, 1, 2])
    expected = torch.tensor([math.log(2), math.log(4), math.log(4)], dtype=torch.float64)
    # A constant added to logits changes nothing.
    assert torch.allclose(cross_entropy_per_token(Q.expand(3, 3) + 7.0, labels), expected, rtol=0, atol=1e-14)


def test_entropy_by_hand():
    # 1/2 log 2 + 2 1/4 log 4 = 3/2 log 2, a token that is excluded adds nothing
    excluded = torch.cat([Q, torch.tensor([-math.inf], dtype=torch.float64)])
    assert entropy_per_token(torch.stack([Q, P])).tolist() == pytest.approx([1.5 * math.log(2)] * 2, abs=1e-15)
    assert entropy_per_token(excluded).item() == pytest.approx(1.5 * math.log(2), abs=1e-15)
    assert entropy_per_token(torch.tensor([0.0, -math.inf])).item() == 0.0


@pytest.mark.parametrize("forbidden", [-math.inf, -1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("allowed", [[0.5, -1.0, 2.0], [0.5, -150.0, 2.0], [0.0, -90.0, -300.0], [7.0]])
def test_entropy_and_its_gradient_are_those_of_the_allowed_tokens_in_float64(allowed, forbidden):
    """-150 and -300 are allowed tokens whose probability float32 rounds to zero, and -90 one that is subnormal."""
    logits = torch.tensor([forbidden, *allowed, forbidden], dtype=torch.float32).requires_grad_()
    entropy = entropy_per_token(logits.log_softmax(dim=-1))
    exact = torch.tensor(allowed, dtype=torch.float64)
    probs = exact.softmax(dim=-1)
    expected = -sum(float(p) * math.log(float(p)) for p in probs)
    slopes = [-float(p) * (math.log(float(p)) + expected) for p in probs]
    assert entropy.item() == pytest.approx(expected, rel=1e-6, abs=1e-30)
    entropy.backward()
    assert logits.grad.tolist() == pytest.approx([0.0, *slopes, 0.0], rel=1e-5, abs=1e-30)


def test_kl_by_hand_and_its_direction():
    assert kl_per_token(Q, P).item() == pytest.approx(math.log(2) / 4, abs=1e-15)
    # Both directions agree above by symmetry. Here KL(p || q) = log 2 for p = (1, 0); KL(q || p) is infinite.
    sure, even = logits_of(1.0, 0.0), logits_of(0.5, 0.5)
    assert kl_per_token(even, sure).item() == pytest.approx(math.log(2), abs=1e-15)
    assert kl_per_token(sure, even).item() == math.inf


def test_kl_has_finite_gradients_where_both_exclude_a_token():
    student = logits_of(0.5, 0.5, 0.0).requires_grad_()
    teacher = logits_of(0.25, 0.75, 0.0).requires_grad_()
    kl = kl_per_token(student, teacher)
    # 1/4 log(1/2) + 3/4 log(3/2)
    assert kl.item() == pytest.approx(0.75 * math.log(1.5) - 0.25 * math.log(2), abs=1e-15)
    kl.backward()
    # q - p by the student's logits.
    assert torch.allclose(student.grad, torch.tensor([0.25, -0.25, 0.0], dtype=torch.float64), rtol=0, atol=1e-14)
    assert teacher.grad.isfinite().all()


def test_total_variation_by_hand():
    assert total_variation_per_token(Q, P).item() == pytest.approx(0.25, abs=1e-15)
    assert total_variation_per_token(logits_of(1.0, 0.0), logits_of(0.0, 1.0)).item() == 1.0


def test_total_variation_is_what_is_not_accepted(generator):
    q, p = (torch.randn(5, 7, 11, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = 1 - torch.minimum(torch.softmax(q, -1), torch.softmax(p, -1)).sum(-1)
    assert torch.allclose(total_variation_per_token(q, p), expected, rtol=0, atol=1e-14)


def test_nothing_separates_a_distribution_from_itself():
    assert kl_per_token(Q, Q + 3.0).item() == pytest.approx(0.0, abs=1e-15)
    assert total_variation_per_token(Q, Q + 3.0).item() == pytest.approx(0.0, abs=1e-15)


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


@pytest.mark.parametrize("function", [kl_per_token, total_variation_per_token, smooth_l1_per_token])
@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64,) * 2]
)
def test_half_precision_is_computed_in_float32(function, dtype, expected, generator):
    one, other = (torch.randn(4, 9, generator=generator).to(dtype) for _ in range(2))
    found = function(one, other)
    assert found.dtype == expected
    assert torch.equal(found, function(one.to(expected), other.to(expected)))


@pytest.mark.parametrize("function", [kl_per_token, total_variation_per_token, smooth_l1_per_token])
def test_gradients_of_both_arguments(function, generator):
    one, other = (torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(function, (one, other))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
