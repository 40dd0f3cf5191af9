"""Exposure and context: by hand, and whether each fault planted in a model of a known law moves the ratio it is of."""

import numpy as np
import pytest
import torch

from worldmtp.analysis.consistency import sequence_interval
from worldmtp.analysis.open_loop import OpenLoopLosses, drawn_path_loss, open_loop_split
from worldmtp.exact import hidden_markov

DEPTH, ROOTS, FIRST_ROOT, TEXTS = 3, 16, 6, 300


def ring():
    """Five states in a ring, left for the next with probability .85; each shows itself with .88."""
    eye = torch.eye(5, dtype=torch.float64)
    return hidden_markov(0.85 * eye.roll(1, dims=1) + 0.15 * eye, 0.85 * eye + 0.03)


LAW = ring()


@pytest.fixture(scope="module")
def texts():
    return LAW.sample(TEXTS, FIRST_ROOT + ROOTS + DEPTH, torch.Generator().manual_seed(0))[0]


def tokens_ahead(texts):
    places = FIRST_ROOT + np.arange(ROOTS)[:, None] + np.arange(1, DEPTH + 1)
    return texts.numpy()[:, places]


def loss_of(probabilities, texts):
    return -np.log(np.take_along_axis(probabilities, tokens_ahead(texts)[..., None], axis=-1)[..., 0])


def next_tokens(texts):
    """The law of each token given all before it, at the targets of each root: (text, root, depth, symbol)."""
    law = LAW.next_token(LAW.beliefs(texts)).numpy()  # [:, n] is of token n, before it is seen
    places = FIRST_ROOT + np.arange(ROOTS)[:, None] + np.arange(1, DEPTH + 1)
    return law[:, places]


def marginals(texts):
    return LAW.marginals(LAW.beliefs(texts)[:, 1 + FIRST_ROOT : 1 + FIRST_ROOT + ROOTS], DEPTH).numpy()


def paths(texts, draw):
    """What a model that knows the law says of token t+k after 64 paths of its own, whose tokens ``draw`` chooses."""
    generator, found = torch.Generator().manual_seed(1), []
    for root in range(FIRST_ROOT, FIRST_ROOT + ROOTS, 4):
        prefix, laws = texts[:, : root + 1].repeat_interleave(64, dim=0), []
        for _ in range(DEPTH):
            laws.append(LAW.next_token(LAW.beliefs(prefix))[:, -1])
            prefix = torch.cat([prefix, torch.multinomial(draw(laws[-1]), 1, generator=generator)], dim=1)
        found.append(torch.stack(laws, dim=1).unflatten(0, (-1, 64)).transpose(1, 2))
    return torch.stack(found, dim=1).numpy()


def likeliest(law):
    return (law == law.amax(dim=-1, keepdim=True)).double()


def drifted(probabilities):
    """States that are rolled along are forgotten, by a tenth a step."""
    kept = 0.9 ** np.arange(DEPTH)[:, None]
    return kept * probabilities + (1 - kept) / LAW.num_symbols


def splits(texts, rolling, open_loop):
    losses = OpenLoopLosses(loss_of(next_tokens(texts), texts), rolling, open_loop)
    found = [open_loop_split(losses, depth, generator=0) for depth in range(1, DEPTH + 1)]
    assert all(split is not None for split in found)
    return found


def floor(texts):
    """(noise + structural gap) / noise, of the law itself."""
    truth = LAW.true_split(LAW.beliefs(texts)[:, 1 + FIRST_ROOT : 1 + FIRST_ROOT + ROOTS], DEPTH)
    noise, structural = (part.mean(dim=(0, 1)).numpy() for part in (truth.noise, truth.structural))
    return (noise + structural) / noise


def test_of_a_right_model_the_exposure_is_one_and_the_context_is_what_nobody_knows(texts):
    right = loss_of(next_tokens(texts), texts)
    found = splits(texts, right, loss_of(marginals(texts), texts))
    expected = floor(texts)
    assert expected[0] == pytest.approx(1)
    assert expected[2] > expected[1] > 1.1
    for split, context in zip(found, expected, strict=True):
        assert split.exposure.low == split.exposure.high == 1.0
        assert split.context.low <= context <= split.context.high
        assert split.product.estimate == pytest.approx(split.exposure.estimate * split.context.estimate)


def test_states_that_are_forgotten_trip_the_exposure_alone(texts):
    """Both ways roll the same states, so their ratio is not above that of a right model."""
    rolling = loss_of(drifted(next_tokens(texts)), texts)
    found = splits(texts, rolling, loss_of(drifted(marginals(texts)), texts))
    for split, context in list(zip(found, floor(texts), strict=True))[1:]:
        assert split.exposure.low > 1
        assert split.context.low <= context


def test_a_model_that_tells_itself_too_little_trips_the_context_alone(texts):
    """Every fourth root. A model that tells itself its first guess alone rolls the real text as well as any."""
    few, at = texts, slice(None, None, 4)
    full, ahead = loss_of(next_tokens(few), few)[:, at], tokens_ahead(few)[:, at]
    own, greedy = (
        OpenLoopLosses(full, full, drawn_path_loss(paths(few, draw), ahead)) for draw in (lambda law: law, likeliest)
    )
    right, faulty = (open_loop_split(losses, 2, generator=0) for losses in (own, greedy))
    assert right.context.low <= floor(texts)[1] <= right.context.high
    assert faulty.exposure.estimate == 1.0
    assert faulty.context.low > floor(texts)[1]
    for depth in (2, 3):
        told = (greedy.open_loop - own.open_loop)[:, :, depth - 1 : depth]
        assert sequence_interval(told, generator=0).low > 0


def test_ratios_by_hand():
    """Two texts of one root: losses 1 and 3 by the full teacher, 2 and 4 rolling, 3 and 9 in the open loop."""
    at = [np.array(values, dtype=np.float64).reshape(2, 1, 1) for values in ([1, 3], [2, 4], [3, 9])]
    found = open_loop_split(OpenLoopLosses(*at), 1, generator=0)
    assert found.exposure.estimate == pytest.approx(6 / 4)
    assert found.context.estimate == pytest.approx(12 / 6)
    assert found.product.estimate == pytest.approx(12 / 4)
    assert (found.exposure.n, found.exposure.unit) == (2, "sequence")


def test_places_that_one_way_does_not_know_count_for_none():
    nan = float("nan")
    full = np.array([[1.0, 1.0], [1.0, 5.0], [1.0, nan]])[..., None]
    rolling = np.array([[2.0, 2.0], [2.0, nan], [2.0, 9.0]])[..., None]
    found = open_loop_split(OpenLoopLosses(full, rolling, rolling), 1, generator=0)
    assert found.exposure.estimate == 2.0  # 8 over 4, of four places
    assert found.exposure.n == 3


def test_no_ratio_where_the_next_token_is_known_or_a_single_text_speaks():
    nothing, some = np.zeros((4, 1, 1)), np.ones((4, 1, 1))
    assert open_loop_split(OpenLoopLosses(nothing, some, some), 1, generator=0) is None
    assert open_loop_split(OpenLoopLosses(some[:1], some[:1], some[:1]), 1, generator=0) is None


def test_a_mean_over_drawn_paths_by_hand():
    """Two paths give the token .2 and .6, of which the second ended: the mean is .4, or .2; a thousandth is uniform."""
    conditionals = np.array([[0.2, 0.8], [0.6, 0.4]]).reshape(1, 1, 1, 2, 2)
    token = np.zeros((1, 1, 1), dtype=np.int64)
    assert drawn_path_loss(conditionals, token)[0, 0, 0] == pytest.approx(-np.log(0.999 * 0.4 + 0.0005))
    alive = np.array([True, False]).reshape(1, 1, 1, 2)
    assert drawn_path_loss(conditionals, token, alive)[0, 0, 0] == pytest.approx(-np.log(0.999 * 0.2 + 0.0005))
    assert np.isnan(drawn_path_loss(conditionals, token, np.zeros_like(alive))[0, 0, 0])
