"""The split of a head's loss: by hand, exact against a known law, and the bracket on both sides of the truth."""

import math

import numpy as np
import pytest
import torch

from worldmtp.analysis.loss_split import bracketed_split, exact_split, expected_loss, of_realized, realized_loss
from worldmtp.exact import block_hmm, mess3


def drawn_futures(source, beliefs, depth, num_futures, generator):
    """p(x_{t+k} | prefix, drawn tokens in between) of each root, by filtering: (root, depth, future, symbol)."""
    states = beliefs.repeat_interleave(num_futures, dim=0)
    found = []
    for _ in range(depth):
        said = source.next_token(states)
        found.append(said)
        states = source.update(states, torch.multinomial(said, 1, generator=generator)[:, 0])
    return torch.stack(found, dim=1).unflatten(0, (len(beliefs), num_futures)).transpose(1, 2)


def test_two_futures_by_hand():
    # Two futures that settle the token, one each way: mean (1/2, 1/2), entropies of each 0.
    conditionals = np.array([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 1, 1, 2, 2).repeat(2, axis=0)
    split = bracketed_split(np.full((2, 1, 1), 0.9), np.full((2, 1, 1), 0.1), conditionals)
    assert split.structural_lower[0, 0, 0] == pytest.approx(math.log(2))
    # Upper: each future against the other, which holds 1/2000 of its token: log 2000.
    assert split.structural_upper[0, 0, 0] == pytest.approx(math.log(2000))
    assert split.error_upper[0, 0, 0] == pytest.approx(0.8 - math.log(2))
    assert split.error_lower[0, 0, 0] == pytest.approx(0.8 - math.log(2000))
    # Futures that agree leave nothing open: both bounds are H(.3) - H(.3), up to the thousandth.
    alike = np.broadcast_to(np.array([0.3, 0.7]), (2, 1, 1, 2, 2))
    split = bracketed_split(np.ones((2, 1, 1)), np.ones((2, 1, 1)), alike)
    assert split.structural_lower[0, 0, 0] == pytest.approx(0.0)
    assert split.structural_upper[0, 0, 0] == pytest.approx(0.0, abs=1e-3)


def test_futures_that_ended_are_no_part_of_the_law():
    # Three futures; the third ended, so of the second depth the first two are left. Of two more roots one has one
    # future left and one no token, and neither says anything.
    conditionals = np.zeros((3, 1, 2, 3, 2))
    conditionals[..., 0] = 1
    conditionals[:, :, 1, 1] = [0.0, 1.0]
    alive = np.ones((3, 1, 2, 3), dtype=bool)
    alive[0, 0, 1, 2] = False
    alive[1, 0, 1, 1:] = False
    loss = np.ones((3, 1, 2))
    loss[2, 0, 1] = np.nan
    split = bracketed_split(loss, np.zeros((3, 1, 2)), conditionals, alive)
    assert split.structural_lower[0, 0].tolist() == pytest.approx([0.0, math.log(2)])
    assert np.isnan(split.structural_upper[1:, 0, 1]).all()
    assert np.isnan(split.error_lower[1:, 0, 1]).all()
    assert (split.num_sequences(1), split.num_sequences(2)) == (3, 1)
    assert split.interval("structural", 1, generator=0).estimate == pytest.approx(0.0, abs=1e-3)
    with pytest.raises(ValueError, match="an interval needs at least 2"):
        split.interval("error", 2, generator=0)


@pytest.mark.parametrize("source", [mess3(), block_hmm(2, 3, 0.2)])
def test_exact_parts_add_up_to_the_loss(source):
    tokens, _ = source.sample(20, 12, torch.Generator().manual_seed(0))
    beliefs = source.beliefs(tokens)[:, 1:9]
    marginals, truth = source.marginals(beliefs, 3).numpy(), source.true_split(beliefs, 3)
    noise, structural = truth.noise.numpy(), truth.structural.numpy()
    oracle = exact_split(expected_loss(marginals, marginals), noise, structural)
    assert np.allclose(oracle.error_lower, 0, atol=1e-12)
    assert oracle.is_exact
    flat = np.full_like(marginals, 1 / source.num_symbols)
    error = exact_split(expected_loss(marginals, flat), noise, structural).error_upper
    assert np.allclose(error, (marginals * np.log(marginals * source.num_symbols)).sum(axis=-1))  # KL to uniform


def test_bounds_hold_the_truth_between_them_and_close():
    source = block_hmm(2, 3, 0.2)
    tokens, _ = source.sample(300, 6, torch.Generator().manual_seed(0))
    beliefs = source.beliefs(tokens)[:, 3]
    truth, marginals = source.true_split(beliefs, 3), source.marginals(beliefs, 3)
    structural, noise = truth.structural.mean(dim=0).numpy(), truth.noise.numpy()[:, None]
    said = marginals.numpy()[:, None]
    loss = expected_loss(said, said)
    widths = []
    for num_futures in (4, 16, 64):
        drawn = drawn_futures(source, beliefs, 3, num_futures, torch.Generator().manual_seed(1))
        split = bracketed_split(loss, noise, drawn.numpy()[:, None])
        lower, upper = split.structural_lower.mean(axis=(0, 1)), split.structural_upper.mean(axis=(0, 1))
        assert np.all(lower[1:] < structural[1:])
        assert np.all(structural[1:] < upper[1:])
        for depth in (1, 2, 3):
            found = split.interval("error", depth, generator=0)
            assert found.low <= 1e-3  # the oracle's error is 0
            assert found.high >= -1e-9
        widths.append(float((upper - lower)[1:].mean()))
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_realized_tokens_are_read_at_their_depth():
    # One text 0 1 2 1; depth k at root t gives its whole probability to symbol (t + k) mod 3: right but for token 3.
    predicted = np.zeros((1, 2, 2, 3))
    for root in range(2):
        for k in (1, 2):
            predicted[0, root, k - 1, (root + k) % 3] = 1
    tokens = np.array([[0, 1, 2, 1]])
    assert of_realized(predicted, tokens)[0].tolist() == [[1, 1], [1, 0]]
    assert of_realized(predicted[:, :1, :1], tokens, first_root=1, first_depth=2)[0].tolist() == [[1.0]]  # token 3 is 1
    uniform = np.full((1, 2, 2, 3), 1 / 3)
    assert np.allclose(realized_loss(uniform, tokens), math.log(3))


def test_errors_say_what_is_missing():
    with pytest.raises(ValueError, match=r"1 future\(s\) a root; the upper bound leaves one out"):
        bracketed_split(np.ones((1, 1, 1)), np.ones((1, 1, 1)), np.ones((1, 1, 1, 1, 2)) / 2)
    with pytest.raises(ValueError, match=r"3 roots from token 0 on, and 2 tokens from 1 ahead, need 5 tokens"):
        of_realized(np.ones((1, 3, 2, 2)) / 2, np.zeros((1, 4), dtype=np.int64))
