"""Value, reward and continuation before and after they learn."""

import pytest
import torch

from worldmtp.model.config import MTPConfig
from worldmtp.model.world_heads import WorldHeads, binned_mean, two_hot_cross_entropy


@pytest.mark.parametrize(
    ("reward_range", "bins"),
    [
        ((0.0, 1.0), [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1]),
        ((-1.0, 1.0), [-1, -0.5, 0, 0.5, 1]),
        ((-2.0, 0.0), [-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2]),
    ],
)
def test_they_start_at_zero_and_undecided(reward_range, bins):
    """Five bins over the range, mirrored where it is one-sided: uniform means zero, exactly."""
    heads = WorldHeads(MTPConfig(hidden_size=8, value_range=(-1.0, 1.0), reward_range=reward_range, num_value_bins=5))
    assert heads.reward_bins.tolist() == bins
    prediction = heads(torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0)))
    assert prediction.value_logits.shape == (3, 2, 5)
    assert prediction.reward_logits.shape == (3, 2, len(bins))
    assert torch.equal(binned_mean(prediction.value_logits, heads.value_bins), torch.zeros(3, 2))
    assert torch.equal(binned_mean(prediction.reward_logits, heads.reward_bins), torch.zeros(3, 2))
    assert torch.equal(prediction.continuation_probs, torch.full((3, 2), 0.5))


def test_continuation_is_the_probability_of_the_second_class():
    heads = WorldHeads(MTPConfig(hidden_size=8))
    heads.continuation[-1].bias.data = torch.tensor([0.0, 3.0]).log1p()  # odds 1 : 4
    torch.testing.assert_close(heads(torch.ones(1, 8)).continuation_probs, torch.tensor([0.8]))


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2]
)
def test_bins_are_not_rounded_with_the_weights(dtype, expected):
    heads = WorldHeads(MTPConfig(hidden_size=8, value_range=(0.0, 3.0), num_value_bins=4)).to(dtype)
    assert heads.value_bins.dtype == expected
    assert torch.equal(heads.value_bins, torch.tensor([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0], dtype=expected))
    prediction = heads(torch.ones(2, 8, dtype=dtype))
    assert binned_mean(prediction.value_logits, heads.value_bins).dtype == expected


def test_they_fit_what_a_latent_tells():
    generator = torch.Generator().manual_seed(1)
    heads = WorldHeads(MTPConfig(hidden_size=8, value_range=(-1.0, 1.0), num_value_bins=11))
    latent = torch.randn(64, 8, generator=generator)
    target = 0.8 * torch.sign(latent[:, 0])
    optimizer = torch.optim.Adam(heads.parameters(), lr=1e-2)
    for _ in range(150):
        loss = two_hot_cross_entropy(heads(latent).value_logits, target, heads.value_bins).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    error = (binned_mean(heads(latent).value_logits, heads.value_bins) - target).abs()
    assert error.mean() < 0.02
