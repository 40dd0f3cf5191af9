"""Draws from a policy, also where the generator lives on another device than the policy."""

import math

import pytest
import torch

from worldmtp.model.categorical import draw, entropy_per_token, inverse_distribution


@pytest.mark.parametrize(("uniform", "action"), [(0.0, 1), (0.24, 1), (0.26, 2), (0.74, 2), (0.76, 4), (1 - 2**-53, 4)])
def test_the_inverse_distribution_by_hand(uniform: float, action: int) -> None:
    """Probabilities 0, 1/4, 1/2, 0, 1/4: the improbable 0 and 3 are never drawn, not even at the ends."""
    probs = torch.tensor([[0.0, 0.25, 0.5, 0.0, 0.25]])
    assert inverse_distribution(probs, torch.tensor([uniform], dtype=torch.float64)).tolist() == [action]


def test_both_ways_of_drawing_have_the_policys_frequencies() -> None:
    probs = torch.tensor([0.1, 0.6, 0.0, 0.3])
    log_policy = probs.log().expand(20_000, 4)
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(20_000, generator=generator, dtype=torch.float64)
    for drawn in (draw(log_policy, generator), inverse_distribution(log_policy.exp(), uniform)):
        shares = drawn.bincount(minlength=4) / 20_000
        # Standard deviation at most .0035; six of them: false alarm below 1e-7, and the seed is fixed.
        torch.testing.assert_close(shares, probs, atol=0.021, rtol=0)


def test_without_a_generator_the_likeliest_is_taken() -> None:
    assert draw(torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.0, 0.1]]).log(), None).tolist() == [1, 0]


# q = (1/2, 1/4, 1/4), p = (1/4, 1/4, 1/2)
Q = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log()
P = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64).log()


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
