"""Heads with a planted fault each, on sequences of a known law: which number moves, and which must not.

The law goes round, so that the token three ahead is not a blurred picture of the next: of a law that merely forgets, a
shifted head and a sharpened one differ by their sharpness alone.
"""

import numpy as np
import pytest
import torch

from worldmtp.analysis.consistency import (
    certificate,
    kept_paths,
    misaligned_by,
    null_advantage,
    sequence_interval,
    staleness_bound,
    tower_residual,
)
from worldmtp.analysis.loss_split import exact_split, realized_loss
from worldmtp.exact import hidden_markov
from worldmtp.studies.probes import explained_share, linear_readout

DEPTH, ROOTS, FIRST_ROOT, TEXTS = 4, 24, 6, 400


def ring(advance):
    """Five states in a ring, left for the next with probability ``advance``; each shows itself with .88."""
    eye = torch.eye(5, dtype=torch.float64)
    return hidden_markov(advance * eye.roll(1, dims=1) + (1 - advance) * eye, 0.85 * eye + 0.03)


LAW, OLD_LAW = ring(0.85), ring(0.7)


@pytest.fixture(scope="module")
def texts():
    return LAW.sample(TEXTS, FIRST_ROOT + ROOTS + DEPTH, torch.Generator().manual_seed(0))[0]


def marginals(law, texts, depth=DEPTH):
    beliefs = law.beliefs(texts)[:, 1 + FIRST_ROOT : 1 + FIRST_ROOT + ROOTS]
    return law.marginals(beliefs, depth).numpy()


def sharpened(texts):
    squared = marginals(LAW, texts) ** 2
    return squared / squared.sum(axis=-1, keepdims=True)


def leaking(texts):
    """A tenth of each prediction is the token itself."""
    roots = FIRST_ROOT + np.arange(ROOTS)[:, None] + np.arange(1, DEPTH + 1)
    return 0.9 * marginals(LAW, texts) + 0.1 * np.eye(LAW.num_symbols)[texts.numpy()[:, roots]]


HEADS = {
    "oracle": lambda texts: marginals(LAW, texts),
    "sharpened": sharpened,
    "shifted": lambda texts: marginals(LAW, texts, DEPTH + 1)[:, :, 1:],
    "shuffled": lambda texts: np.roll(marginals(LAW, texts), 7, axis=0),
    "stale": lambda texts: marginals(OLD_LAW, texts),
    "leaking": leaking,
}
# What each number says of each head. "error": its sign where the interval excludes 0. "stale": the error is within what
# the law has moved since, and is there. All columns are asserted: a fault trips its own and, of the others, these.
SIGNS = {
    "oracle": {"error": 0, "tower": 0, "misaligned": 0, "ignorant": False, "stale": False},
    "sharpened": {"error": 1, "tower": -1, "misaligned": 0, "ignorant": False, "stale": False},
    "shifted": {"error": 1, "tower": 0, "misaligned": -1, "ignorant": False, "stale": False},
    "shuffled": {"error": 1, "tower": 0, "misaligned": 0, "ignorant": True, "stale": False},
    "stale": {"error": 1, "tower": 1, "misaligned": 0, "ignorant": False, "stale": True},
    "leaking": {"error": -1, "tower": 0, "misaligned": 0, "ignorant": False, "stale": False},
}


def total_variation(one, other):
    return 0.5 * np.abs(one - other).sum(axis=-1)


def sign(interval):
    return int(interval.low > 0) - int(interval.high < 0)


def symptoms(predicted, texts, moved_from):
    tokens = texts.numpy()
    beliefs = LAW.beliefs(texts)[:, 1 + FIRST_ROOT : 1 + FIRST_ROOT + ROOTS]
    truth = LAW.true_split(beliefs, DEPTH)
    split = exact_split(realized_loss(predicted, tokens, FIRST_ROOT), truth.noise.numpy(), truth.structural.numpy())
    error = sign(sequence_interval(split.error_lower, generator=0))
    # How far the law has moved since the heads' own: total variation of the next token, step by step.
    steps = total_variation(
        LAW.next_token(LAW.beliefs(texts)[:, 1:-1])[:, :, None].numpy(),
        moved_from.next_token(moved_from.beliefs(texts)[:, 1:-1])[:, :, None].numpy(),
    )[:, FIRST_ROOT:, 0]
    drift = total_variation(predicted, marginals(LAW, texts))
    room = staleness_bound(steps, ROOTS, DEPTH) - drift
    return {
        "error": error,
        "tower": sign(sequence_interval(tower_residual(predicted), generator=0, level=0.99)),
        "misaligned": misaligned_by(predicted, tokens, generator=0, first_root=FIRST_ROOT),
        "ignorant": sign(sequence_interval(null_advantage(predicted, tokens, FIRST_ROOT), generator=0)) < 1,
        "stale": error > 0 and sign(sequence_interval(room, generator=0)) > -1,
    }


@pytest.mark.parametrize("name", HEADS)
def test_a_fault_trips_the_number_that_exists_for_it(texts, name):
    moved_from = OLD_LAW if name == "stale" else LAW
    assert symptoms(HEADS[name](texts), texts, moved_from) == SIGNS[name]


def test_a_shift_the_other_way_has_the_other_sign(texts):
    # Depth k says what depth k - 1 should, from the next token on: its right prediction is at depth k + 1.
    predicted = marginals(LAW, texts)
    late = np.concatenate([predicted[:, :, :1], predicted[:, :, :-1]], axis=2)
    assert misaligned_by(late, texts.numpy(), generator=0, first_root=FIRST_ROOT) == 1


def test_an_oracle_of_the_belief_explains_all_of_it(texts):
    beliefs = LAW.beliefs(texts)[:, FIRST_ROOT:]
    train, test = beliefs[:200].flatten(0, 1), beliefs[200:].flatten(0, 1)
    turned = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    read = linear_readout(train @ turned, train, test @ turned, ridge=1e-12)
    assert explained_share(test, read) == pytest.approx(1, abs=1e-6)
    # Nothing is read off states that know nothing of the belief.
    noise = torch.randn(len(train) + len(test), 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    read = linear_readout(noise[: len(train)], train, noise[len(train) :])
    assert abs(explained_share(test, read)) < 0.02


def test_what_a_move_of_the_law_costs_stays_below_its_bound(texts):
    """With heads that keep the old law's belief the bound holds in the mean, and Pinsker's is above it."""
    new, old = (law.next_token(law.beliefs(texts)[:, 1:-1]).numpy() for law in (LAW, OLD_LAW))
    steps = total_variation(new[:, :, None], old[:, :, None])[:, FIRST_ROOT:, 0]
    bound = staleness_bound(steps, ROOTS, DEPTH).mean(axis=(0, 1))
    drift = total_variation(marginals(LAW, texts), marginals(OLD_LAW, texts)).mean(axis=(0, 1))
    assert np.all(drift <= bound)
    assert drift[0] == pytest.approx(bound[0])
    divergence = (new * np.log(new / old)).sum(axis=-1).max()
    assert np.all(bound <= np.arange(1, DEPTH + 1) * np.sqrt(divergence / 2))


def test_kept_paths_are_one_less_the_distance_of_the_laws(texts):
    """Against the enumeration of all paths of four tokens, root by root; the sample's error is in the interval."""
    beliefs = LAW.beliefs(texts)[:, 1 + FIRST_ROOT : 1 + FIRST_ROOT + ROOTS]
    predicted = torch.from_numpy(marginals(LAW, texts))
    product = predicted[:, :, 0]
    for k in range(1, DEPTH):
        product = torch.einsum("brp,brx->brpx", product, predicted[:, :, k]).flatten(2)
    kept = torch.minimum(LAW.joint(beliefs, DEPTH), product).sum(dim=-1).mean()
    sampled = kept_paths(predicted.numpy(), chain(texts), texts.numpy(), FIRST_ROOT)
    interval = sequence_interval(sampled[:, :, None], generator=0, level=0.99)
    assert interval.low < float(kept) < interval.high
    assert interval.high - interval.low < 0.05


def chain(texts):
    """Return log p(x_{t+k} | x_<t+k) at each root and depth."""
    said = LAW.next_token(LAW.beliefs(texts)[:, :-1]).log().gather(2, texts[..., None])[..., 0].numpy()
    ahead = FIRST_ROOT + np.arange(ROOTS)[:, None] + np.arange(1, DEPTH + 1)
    return said[:, ahead]


@pytest.mark.parametrize("name", HEADS)
def test_returns_of_tokens_hold_to_the_certificate(texts, name):
    """Reward: how many of the next tokens are one symbol. Whatever the heads' fault, it is their tokens' fault."""
    predicted = HEADS[name](texts)
    assert {counted(predicted, texts, symbol)[0].verdict for symbol in range(5)} == {"holds"}


def test_a_reward_head_of_another_world_violates_the_certificate(texts):
    """The tokens are foretold well, but each is paid three quarters where it earns nothing."""
    predicted = marginals(LAW, texts)
    _, imagined = counted(predicted, texts, 0)
    tokens = texts.numpy()
    ahead = tokens[:, FIRST_ROOT + np.arange(ROOTS)[:, None] + np.arange(1, DEPTH + 1)]
    kept = kept_paths(predicted, chain(texts), tokens, FIRST_ROOT)
    planted = imagined + 0.75 * (DEPTH - imagined)
    found = certificate(planted, (ahead == 0).sum(axis=2).astype(float), kept, float(DEPTH), generator=0)
    assert found.verdict == "violated"
    assert found.difference.low > found.bound.high


def counted(predicted, texts, symbol):
    tokens = texts.numpy()
    ahead = tokens[:, FIRST_ROOT + np.arange(ROOTS)[:, None] + np.arange(1, DEPTH + 1)]
    realized = (ahead == symbol).sum(axis=2).astype(float)
    imagined = predicted[..., symbol].sum(axis=2)
    kept = kept_paths(predicted, chain(texts), tokens, FIRST_ROOT)
    return certificate(imagined, realized, kept, float(DEPTH), generator=0), imagined
