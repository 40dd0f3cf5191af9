"""Multi-token losses: hand-worked values, reductions, and what is held in memory."""

import math

import pytest
import torch

from worldmtp.losses import DepthLosses, combination_weights, combine_depth_losses, depth_cross_entropy
from worldmtp.targets import DepthTargets, depth_targets

TIGHT = {"rtol": 0.0, "atol": 1e-12}


@pytest.fixture
def problem():
    """Latents of three depths over two rows, one padded, with a prompt; an LM head with a bias."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 13, (2, 7), generator=generator)
    real = torch.ones((2, 7), dtype=torch.bool)
    real[1, 5:] = False
    loss_mask = real.clone()
    loss_mask[:, :2] = False
    targets = depth_targets(ids, real, 3, loss_mask=loss_mask)
    latents = [torch.randn(2, 7, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weight = torch.randn(13, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(13, generator=generator, dtype=torch.float64, requires_grad=True)
    return latents, targets, weight, bias


def by_loop(latents, targets, weight, bias):
    """Minus log softmax, one position at a time."""
    sums = []
    for k, latent in enumerate(latents):
        total = torch.zeros((), dtype=torch.float64)
        for b in range(latent.shape[0]):
            for t in range(latent.shape[1]):
                if targets.mask[b, t, k]:
                    scores = weight @ latent[b, t] + bias
                    total = total + torch.logsumexp(scores, dim=0) - scores[targets.targets[b, t, k]]
        sums.append(total)
    return torch.stack(sums)


def test_two_depths_by_hand():
    # Position 0 has probabilities 1/4, 3/4; position 1 has 1/2, 1/2.
    first = torch.tensor([[[1.0, 3.0], [1.0, 1.0], [9.0, 9.0]]]).log()
    second = torch.tensor([[[3.0, 1.0], [5.0, 5.0], [9.0, 9.0]]]).log()
    targets = torch.tensor([[[1, 0], [0, 1], [1, 1]]])
    mask = torch.tensor([[[True, True], [True, False], [False, False]]])
    losses = depth_cross_entropy([first, second], targets, mask)
    assert losses.sums.tolist() == pytest.approx([-math.log(0.75) - math.log(0.5), -math.log(0.75)])
    assert losses.counts.tolist() == [2, 1]
    assert losses.means.tolist() == pytest.approx([-math.log(0.75 * 0.5) / 2, -math.log(0.75)])


def test_sums_equal_a_loop_over_positions(problem):
    latents, targets, weight, bias = problem
    expected = by_loop(*problem)
    # Rows of 7 and 5 tokens with prompts of 2: 5 + 3 answer tokens, all within reach of depths 1 and 2; at depth 3 the
    # first of each row would be predicted from before the row.
    whole = depth_cross_entropy([latent @ weight.T + bias for latent in latents], targets.targets, targets.mask)
    assert whole.counts.tolist() == [8, 8, 6]
    torch.testing.assert_close(whole.sums, expected, **TIGHT)


def test_no_valid_target_is_a_loss_of_zero_with_gradients_of_zero(problem):
    latents, targets, weight, bias = problem
    mask = targets.mask.clone()
    mask[:, :, 2] = False
    some = DepthTargets(targets.targets, mask)
    losses = depth_cross_entropy([latent @ weight.T + bias for latent in latents], some.targets, some.mask)
    assert losses.counts.tolist() == [8, 8, 0]
    assert losses.means[2] == 0.0
    total = combine_depth_losses(losses, 0.3)
    total.backward()
    assert total.isfinite()
    assert not latents[2].grad.any()
    assert weight.grad.isfinite().all()


def test_combination_by_hand():
    losses = DepthLosses(sums=torch.tensor([6.0, 8.0, 3.0]), counts=torch.tensor([3, 2, 1]))
    # 6/3 + .3 * (8/2 + 3/1) / 2
    assert combine_depth_losses(losses, 0.3).item() == pytest.approx(2.0 + 0.3 * 3.5)
    assert combine_depth_losses(losses, 0.0).item() == 2.0
    # Every depth over the same ten: .6 + .3 * (.8 + .3) / 2
    assert combine_depth_losses(losses, 0.3, num_items=10).item() == pytest.approx(0.6 + 0.3 * 0.55)
    assert combine_depth_losses(losses, 0.3, num_items=torch.tensor(10)).item() == pytest.approx(0.6 + 0.3 * 0.55)
    # Or each over its own: 6/6 + .3 * (8/4 + 3/2) / 2
    assert combine_depth_losses(losses, 0.3, num_items=torch.tensor([6, 4, 2])).item() == pytest.approx(1 + 0.3 * 1.75)


def test_one_depth_is_its_own_loss_whatever_the_coefficient():
    losses = DepthLosses(sums=torch.tensor([6.0]), counts=torch.tensor([3]))
    assert combine_depth_losses(losses, 5.0).item() == 2.0


def test_no_items_at_all_is_zero_not_nan():
    losses = DepthLosses(sums=torch.zeros(2), counts=torch.zeros(2, dtype=torch.long))
    assert combine_depth_losses(losses, 0.3).item() == 0.0
    assert combine_depth_losses(losses, 0.3, num_items=0).item() == 0.0


def test_micro_batches_with_the_number_of_items_sum_to_the_whole(problem):
    latents, targets, weight, bias = problem
    logits = [latent @ weight.T + bias for latent in latents]
    whole = depth_cross_entropy(logits, targets.targets, targets.mask)
    parts = []
    for n in range(2):
        row = DepthTargets(targets.targets[n : n + 1], targets.mask[n : n + 1])
        losses = depth_cross_entropy([each[n : n + 1] for each in logits], row.targets, row.mask)
        parts.append(combine_depth_losses(losses, 0.3, num_items=whole.counts))
    torch.testing.assert_close(parts[0] + parts[1], combine_depth_losses(whole, 0.3), **TIGHT)


def test_weights_of_the_sums_by_hand():
    counts = torch.tensor([4, 2, 0])
    # Depth 1 counts one over its targets; the others share 0.3 in halves; a depth without targets divides by one.
    assert combination_weights(counts, 0.3).tolist() == pytest.approx([0.25, 0.15 / 2, 0.15])
    assert combination_weights(counts, 0.3, num_items=10).tolist() == pytest.approx([0.1, 0.015, 0.015])
    assert combination_weights(counts[:1], 5.0).tolist() == [0.25]


def test_half_precision_logits_are_summed_in_single_precision():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 400, 7, generator=generator).bfloat16()
    ids = torch.randint(0, 7, (1, 400, 1), generator=generator)
    losses = depth_cross_entropy([logits], ids, torch.ones((1, 400, 1), dtype=torch.bool))
    assert losses.sums.dtype == torch.float32
    expected = -logits.double().log_softmax(dim=-1).gather(2, ids).sum()
    assert losses.sums[0].item() == pytest.approx(expected.item(), rel=1e-6)


def test_depths_that_do_not_match_the_targets_are_refused(problem):
    latents, targets, weight, _ = problem
    message = "2 depths were given for targets of 3 depths; they must agree"
    with pytest.raises(ValueError, match=message):
        depth_cross_entropy([latent @ weight.T for latent in latents[:2]], targets.targets, targets.mask)
