"""Probes read what a state holds, and no more; the solution is that of least squares by another route."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from worldmtp.studies.probes import count_offsets, probe_offsets

VOCAB = 5


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def test_a_state_that_holds_the_token_two_ahead_is_read_there_and_nowhere_else():
    def states_of(ids: torch.Tensor) -> torch.Tensor:
        return functional.one_hot(ids.roll(-2, dims=1), VOCAB).float()

    train_ids, test_ids = draw(40, 50, seed=0), draw(20, 50, seed=1)
    found = probe_offsets(states_of(train_ids), train_ids, states_of(test_ids), test_ids, 3, VOCAB)
    assert found.shape == (20, 3)
    assert found[:, 1].tolist() == [1.0] * 20
    # Elsewhere the tokens are independent of the state: 1/5, of 980 and 940 answers +- 0.013; five deviations fail for
    # fewer than one seed in a million.
    assert found[:, [0, 2]].mean(dim=0).tolist() == pytest.approx([0.2, 0.2], abs=0.065)


def test_a_state_that_holds_nothing_gives_the_majority():
    generator = torch.Generator().manual_seed(0)
    train_ids, test_ids = (torch.randint(10, (rows, 40), generator=generator) for rows in (100, 10))
    train_ids, test_ids = ((ids - 6).clamp_min(0) for ids in (train_ids, test_ids))  # 0 in seven of ten
    noise = [0.01 * torch.randn(rows, 40, 3, generator=generator) for rows in (100, 10)]
    found = probe_offsets(noise[0], train_ids, noise[1], test_ids, 2, VOCAB)
    for offset in (1, 2):
        assert torch.equal(found[:, offset - 1], (test_ids[:, offset:] == 0).float().mean(dim=1))


def test_solution_is_that_of_augmented_least_squares():
    # min |S W - Y|^2 / N + r |W|^2 is least squares with sqrt(N r) I below S and zeros below Y.
    generator = torch.Generator().manual_seed(3)
    ids = [draw(rows, 12, seed=rows) for rows in (6, 4)]
    mixing = torch.randn(VOCAB, 3, generator=generator, dtype=torch.float64)  # 3 dimensions: tokens are confused
    noise = [torch.randn(len(x), 12, 3, generator=generator, dtype=torch.float64) for x in ids]
    states = [mixing[x.roll(-1, dims=1)] + 0.3 * e for x, e in zip(ids, noise, strict=True)]
    mean = states[0].reshape(-1, 3).numpy().mean(axis=0)
    expected = []
    for offset in (1, 2):
        inputs, labels = states[0][:, :-offset].reshape(-1, 3).numpy() - mean, ids[0][:, offset:].reshape(-1).numpy()
        ridge = 0.1 * np.mean(inputs**2)
        below = np.sqrt(len(inputs) * ridge) * np.eye(3)
        onehot = np.eye(VOCAB)[labels]
        weights = np.linalg.lstsq(
            np.concatenate([inputs, below]), np.concatenate([onehot, np.zeros((3, VOCAB))]), rcond=None
        )[0]
        scores = (states[1][:, :-offset].numpy() - mean) @ weights + onehot.mean(axis=0)
        expected.append((scores.argmax(axis=-1) == ids[1][:, offset:].numpy()).mean(axis=1))
    found = probe_offsets(states[0], ids[0], states[1], ids[1], 2, VOCAB, ridge=0.1)
    np.testing.assert_allclose(found.numpy(), np.stack(expected, axis=1), atol=1e-6)
    assert 0.3 < float(found[:, 0].mean()) < 1


def test_texts_no_longer_than_the_offsets_are_refused():
    ids, states = draw(2, 6, seed=0), torch.zeros(2, 6, 3)
    with pytest.raises(ValueError, match="num_offsets=6 must be less than the texts' 6 tokens"):
        probe_offsets(states, ids, states, ids, 6, VOCAB)


def test_counts_by_hand():
    # After 0 comes 1 twice and 2 once; after 1 comes 0 twice; after 2 nothing but 0; 3 is unseen, so 0 is said.
    tokens = torch.tensor([0, 1, 0, 1, 0, 2, 0])
    found = count_offsets(tokens, torch.tensor([[0, 1, 0, 2], [3, 0, 2, 0]]), 2, 4)
    # One ahead: says 1 0 1 against 1 0 2, and 0 1 0 against 0 2 0. Two ahead, 0 -> 0 (of 0 0 2 0 -> 0: three of four),
    # 1 -> 1 (of 1, 2 equally often: the lower); says 0 1 against 0 2, and 0 0 against 2 0.
    assert found.tolist() == [pytest.approx([2 / 3, 1 / 2]), pytest.approx([2 / 3, 1 / 2])]


def test_counts_of_texts_no_longer_than_the_offsets_are_refused():
    with pytest.raises(ValueError, match="num_offsets=3 must be less than the texts' 3 tokens"):
        count_offsets(torch.zeros(9, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long), 3, 2)
