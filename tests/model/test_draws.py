"""Draws from a policy, also where the generator lives on another device than the policy."""

import pytest
import torch

from worldmtp.model.draws import draw, inverse_distribution


@pytest.mark.parametrize(
    ("uniform", "action"),
    [(0.0, 1), (0.24, 1), (0.26, 2), (0.74, 2), (0.76, 4), (1 - 2**-53, 4)],
)
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
