"""How far ahead a hidden state looks: linear probes of h_t for the token t+n, n = 1, 2, 3, ...

Future Lens (Pal et al. 2023, arXiv 2311.04897) asks a transformer's states for the tokens after the next. A probe is a
linear map from frozen states, trained in closed form (ridge regression on one-hot targets), so that no optimiser's luck
enters. Two controls know x_t alone, so what they find is the corpus's statistics and not foresight: the same probe of
x_t's embedding, and the most frequent token n after x_t in the whole training text. The range is the largest n at which
the states beat both.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def probe_offsets(
    train_states: Float[Tensor, "train time hidden"],
    train_ids: Int[Tensor, "train time"],
    test_states: Float[Tensor, "test time hidden"],
    test_ids: Int[Tensor, "test time"],
    num_offsets: int,
    vocab_size: int,
    ridge: float = 1e-2,
) -> Float[Tensor, "test offset"]:
    """Accuracy per held-out text of a linear probe for each offset.

    Solves (S'S / N + ridge * mean variance * I) W = S'Y / N with one-hot tokens Y and states S less their mean over
    all training positions; the tokens' frequencies are the intercept.

    Raises:
        ValueError: texts are not longer than the offsets.
    """
    _check_offsets(num_offsets, train_ids, test_ids)
    mean = train_states.flatten(0, 1).mean(dim=0)
    accuracies = []
    for offset in range(1, num_offsets + 1):
        states = (train_states[:, :-offset] - mean).flatten(0, 1)
        labels = train_ids[:, offset:].flatten()
        gram = states.T @ states / len(states)
        gram.diagonal().add_(ridge * gram.diagonal().mean())
        sums = torch.zeros(vocab_size, states.shape[1], dtype=states.dtype).index_add_(0, labels, states)
        weights = torch.linalg.solve(gram, sums.T / len(states))
        base = torch.bincount(labels, minlength=vocab_size) / len(labels)  # the mean of the one-hot targets
        scores = (test_states[:, :-offset] - mean) @ weights + base.to(states.dtype)
        right = scores.argmax(dim=-1) == test_ids[:, offset:]
        accuracies.append(right.float().mean(dim=1))
    return torch.stack(accuracies, dim=1)


def count_offsets(
    train_tokens: Int[Tensor, " tokens"], test_ids: Int[Tensor, "test time"], num_offsets: int, vocab_size: int
) -> Float[Tensor, "test offset"]:
    """Accuracy per held-out text of the token most often seen 1, 2, .. after x_t; the lowest of equals, 0 if unseen.

    Raises:
        ValueError: texts are not longer than the offsets.
    """
    _check_offsets(num_offsets, train_tokens, test_ids)
    accuracies = []
    for offset in range(1, num_offsets + 1):
        pairs = train_tokens[:-offset] * vocab_size + train_tokens[offset:]
        best = torch.bincount(pairs, minlength=vocab_size**2).view(vocab_size, vocab_size).argmax(dim=1)
        right = best[test_ids[:, :-offset]] == test_ids[:, offset:]
        accuracies.append(right.float().mean(dim=1))
    return torch.stack(accuracies, dim=1)


def _check_offsets(num_offsets: int, train_ids: Tensor, test_ids: Tensor) -> None:
    shortest = min(train_ids.shape[-1], test_ids.shape[-1])
    if num_offsets >= shortest:
        raise ValueError(f"num_offsets={num_offsets} must be less than the texts' {shortest} tokens.")
