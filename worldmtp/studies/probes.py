"""What a trunk knows beyond the next token: linear probes of its states, and induction.

``linear_readout`` is the probe of anything continuous, such as the belief over a source's hidden states.

How far ahead does a hidden state look? Linear probes read h_t for the token t+n, n = 1, 2, 3, ...
Future Lens (Pal et al. 2023, arXiv 2311.04897) asks a transformer's states for the tokens after the next. A probe is a
linear map from frozen states, trained in closed form (ridge regression on one-hot targets), so that no optimiser's luck
enters. Two controls know x_t alone, so what they find is the corpus's statistics and not foresight: the same probe of
x_t's embedding, and the most frequent token n after x_t in the whole training text. The range is the largest n at which
the states beat both.

Induction: after a pair of tokens was seen once, does its first token bring its second? Gloeckle et al. 2024 (arXiv
2404.19737, sec. 4.1) give children's stories random two-token names and ask for the second token of each name. Here
pairs of rare tokens, seldom side by side in any text, replace a few tokens of held-out text: at every occurrence but
the first, copying is the only way to be right.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.decoding.trunk import evaluation_mode
from worldmtp.model import MTPModel

MIN_SPACING = 4
"""Tokens from one occurrence to the next, at least: two for the pair and some text in between."""


@dataclass(frozen=True)
class InductionTexts:
    """``asked[:, t]`` marks first tokens of a pair seen before: their next token is the question."""

    input_ids: Int[Tensor, "text time"]
    asked: Bool[Tensor, "text time"]


def probe_offsets(
    train_states: Float[Tensor, "train time hidden"],
    train_ids: Int[Tensor, "train time"],
    test_states: Float[Tensor, "test time hidden"],
    test_ids: Int[Tensor, "test time"],
    num_offsets: int,
    vocab_size: int,
    ridge: float = 1e-2,
) -> Float[Tensor, "test offset"]:
    """Return the accuracy per held-out text of a linear probe for each offset.

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
        sums = torch.zeros(vocab_size, states.shape[1], dtype=states.dtype).index_add_(0, labels, states)
        weights = _ridge_weights(states, sums.T, ridge)
        base = torch.bincount(labels, minlength=vocab_size) / len(labels)  # the mean of the one-hot targets
        scores = (test_states[:, :-offset] - mean) @ weights + base.to(states.dtype)
        right = scores.argmax(dim=-1) == test_ids[:, offset:]
        accuracies.append(right.float().mean(dim=1))
    return torch.stack(accuracies, dim=1)


def count_offsets(
    train_tokens: Int[Tensor, " tokens"], test_ids: Int[Tensor, "test time"], num_offsets: int, vocab_size: int
) -> Float[Tensor, "test offset"]:
    """Return the accuracy per held-out text of the token most often seen 1, 2, .. after x_t.

    Of equally frequent tokens it is the lowest, and 0 after an x_t that was not seen.

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


def plant_pairs(
    windows: Int[Tensor, "text time"],
    rare_tokens: Int[Tensor, " rare"],
    generator: torch.Generator,
    num_occurrences: int = 4,
) -> InductionTexts:
    """Overwrite ``num_occurrences`` places of each window with that window's own pair of two different rare tokens.

    Raises:
        ValueError: fewer than two rare tokens, or windows too short to hold the occurrences apart.
    """
    num_texts, length = windows.shape
    num_slots = length // MIN_SPACING
    if len(rare_tokens) < 2:
        raise ValueError(f"{len(rare_tokens)} rare tokens were given; a pair needs 2.")
    if num_slots < num_occurrences:
        raise ValueError(
            f"windows of {length} tokens hold {num_slots} occurrences {MIN_SPACING} tokens apart, not "
            f"{num_occurrences}; give longer windows or fewer occurrences."
        )
    input_ids, asked = windows.clone(), torch.zeros_like(windows, dtype=torch.bool)
    for row in range(num_texts):
        pair = rare_tokens[torch.randperm(len(rare_tokens), generator=generator)[:2]]
        slots = torch.randperm(num_slots, generator=generator)[:num_occurrences].sort().values * MIN_SPACING
        input_ids[row, slots] = pair[0]
        input_ids[row, slots + 1] = pair[1]
        asked[row, slots[1:]] = True
    return InductionTexts(input_ids, asked)


def rarest_tokens(
    tokens: Int[Tensor, " tokens"], vocab_size: int, num_rare: int, min_count: int = 200
) -> Int[Tensor, " rare"]:
    """Return the least frequent tokens that occur ``min_count`` times, often enough for each to be learnt."""
    counts = torch.bincount(tokens, minlength=vocab_size)
    order = counts.argsort(stable=True)
    return order[counts[order] >= max(min_count, 1)][:num_rare]


@torch.no_grad()
def induction_accuracy(model: MTPModel, texts: InductionTexts) -> float:
    """Return how often the trunk's greedy next token is the pair's second, where it is asked for."""
    with evaluation_mode(model):
        logits = model(texts.input_ids, compute_depth_logits=False).logits
    right = logits[:, :-1].argmax(dim=-1) == texts.input_ids[:, 1:]
    return float(right[texts.asked[:, :-1]].float().mean())


def linear_readout(
    train_states: Float[Tensor, "train hidden"],
    train_targets: Float[Tensor, "train target"],
    test_states: Float[Tensor, "test hidden"],
    ridge: float = 1e-4,
) -> Float[Tensor, "test target"]:
    """Return what a ridge regression with an intercept reads off the test states, as of beliefs over hidden states.

    ``ridge`` is relative to the states' mean variance. Split by sequence: positions of one text know each other's.
    """
    mean, base = train_states.mean(dim=0), train_targets.mean(dim=0)
    states = train_states - mean
    weights = _ridge_weights(states, states.T @ (train_targets - base), ridge)
    return (test_states - mean) @ weights + base


def explained_share(targets: Float[Tensor, "test target"], read: Float[Tensor, "test target"]) -> float:
    """Return R2 over all targets together: 1 - squared error / squared deviation from the targets' mean."""
    return 1 - float((targets - read).square().sum() / (targets - targets.mean(dim=0)).square().sum())


def _ridge_weights(
    states: Float[Tensor, "row hidden"], products: Float[Tensor, "hidden target"], ridge: float
) -> Float[Tensor, "hidden target"]:
    """Return W of (S'S / N + ridge * mean variance * I) W = S'Y / N, given S and S'Y."""
    gram = states.T @ states / len(states)
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    return torch.linalg.solve(gram, products / len(states))


def _check_offsets(num_offsets: int, train_ids: Tensor, test_ids: Tensor) -> None:
    shortest = min(train_ids.shape[-1], test_ids.shape[-1])
    if num_offsets >= shortest:
        raise ValueError(f"num_offsets={num_offsets} must be less than the texts' {shortest} tokens.")
