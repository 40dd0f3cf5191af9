"""Consistency by hand, in the small Markov world whose means are exact, and what is refused."""

import math

import numpy as np
import pytest

from worldmtp.analysis import consistency, metrics
from worldmtp.analysis.consistency import (
    by_root_entropy,
    certificate,
    misaligned_by,
    null_advantage,
    revision,
    staleness_bound,
    tower_residual,
)
from worldmtp.analysis.metrics import rooted_predictions


def test_tower_residual_by_hand():
    # Root 0: depth 2 gives (.8, .2), first choice 0. Root 1: depth 1 gives (.3, .7) -> .3 - .8.
    predicted = np.array([[[[0.5, 0.5], [0.8, 0.2]], [[0.3, 0.7], [0.1, 0.9]]]])
    assert tower_residual(predicted).tolist() == [[[pytest.approx(-0.5)]]]


def test_revision_is_the_information_of_one_more_token(make_artefact, marginal_heads, transition):
    found = revision(rooted_predictions(make_artefact(marginal_heads)))
    # Depth 2 at root 0 against depth 1 at root 1, and at root 1 against root 2: I(x_{t+2}; x_{t+1} | x_t) with x_t = 0
    # half the time at root 0 and .625 of it at root 1.
    square = transition @ transition

    def information(state):
        return sum(
            transition[state, y] * transition[y, z] * math.log(transition[y, z] / square[state, z])
            for y in (0, 1)
            for z in (0, 1)
        )

    expected = [w * information(0) + (1 - w) * information(1) for w in (0.5, 0.625)]
    assert found.mean()[1] == pytest.approx(sum(expected) / 2)
    assert math.isnan(found.mean()[0])
    assert found.count[0].tolist() == [0, 2, 1]


def test_heads_that_see_and_forget_are_revised_downwards(make_artefact, marginal_heads):
    # The nearer head is flat: seeing more makes it worse.
    flat = np.full((2, 2), 0.5)
    found = revision(rooted_predictions(make_artefact([marginal_heads[0], flat, marginal_heads[2]])))
    assert found.mean()[2] < 0


def test_path_consistency_is_split_by_what_is_known_at_the_root(make_artefact, marginal_heads, transition):
    """Roots are 0 or 1, whose next tokens have entropies H(.75) < H(.5): two bins, each a law of its own."""
    rooted = rooted_predictions(make_artefact(marginal_heads))
    edges, bins = by_root_entropy(rooted, metrics.kept_path_probability(rooted), num_bins=2)
    assert edges[-1] == pytest.approx(math.log(2))
    for state, found in zip((0, 1), bins, strict=True):
        law = transition[state][:, None] * transition
        product = transition[state][:, None] * (transition @ transition)[state][None, :]
        assert found.mean()[1] == pytest.approx(np.minimum(law, product).sum())


def test_certificate_by_hand():
    # Differences .5 and .1 at every root, a fifth of the mass lost: bound 2 * .2 = .4, mean difference .3, slack .1.
    ones = np.ones((2, 3))
    found = certificate(np.array([[0.5], [0.1]]) * ones, 0 * ones, 0.8 * ones, 2.0, generator=0)
    assert found.difference.estimate == pytest.approx(0.3)
    assert found.bound.estimate == pytest.approx(0.4)
    assert found.slack.estimate == pytest.approx(0.1)
    assert found.verdict == "undetermined"  # two sequences
    gaps = np.array([[0.5, np.nan, 9.0], [0.1, 9.0, 0.1]])
    kept = np.array([[0.8, 0.8, np.nan], [0.8, np.nan, 0.8]])
    assert certificate(gaps, 0 * ones, kept, 2.0, generator=0).difference.estimate == pytest.approx(0.7 / 3)
    many = np.ones((40, 3))
    assert certificate(0.3 * many, 0 * many, 0.8 * many, 2.0, generator=0).verdict == "holds"
    assert certificate(0.5 * many, 0 * many, 0.8 * many, 2.0, generator=0).verdict == "violated"
    assert certificate(-0.5 * many, 0 * many, 0.8 * many, 2.0, generator=0).verdict == "violated"


def test_a_right_reward_head_is_seldom_called_wrong():
    """Nothing is lost of the tokens and returns differ by noise alone: an interval of .9 errs in a tenth of draws.

    Of 60 draws more than 14 would be called violated with a probability below .001 (binomial, .1).
    """
    draws = np.random.default_rng(0).normal(size=(60, 20, 1))
    verdicts = [certificate(noise, 0 * noise, np.ones_like(noise), 1.0, generator=0).verdict for noise in draws]
    assert verdicts.count("violated") <= 14
    assert verdicts.count("holds") == 0


def test_staleness_adds_up_along_the_window():
    bound = staleness_bound(np.array([[0.1, 0.2, 0.4]]), num_roots=2, depth=2)
    assert bound[0].tolist() == [[0.1, pytest.approx(0.3)], [0.2, pytest.approx(0.6)]]


def test_errors_say_what_is_missing():
    half, tokens = np.full((1, 2, 1, 2), 0.5), np.zeros((1, 3), dtype=np.int64)
    with pytest.raises(ValueError, match="one text has no other beside it"):
        null_advantage(half, tokens)
    with pytest.raises(ValueError, match="one depth has no neighbour"):
        misaligned_by(half, tokens, generator=0)
    with pytest.raises(ValueError, match="3 roots with 2 tokens ahead need more than 3 steps"):
        staleness_bound(np.zeros((1, 3)), num_roots=3, depth=2)
    with pytest.raises(ValueError, match=r"reward_range=0\.0 must be positive"):
        certificate(*np.zeros((3, 2, 1)), 0.0, generator=0)
    with pytest.raises(ValueError, match=r"realized returns span 2\.0, more than reward_range=1"):
        certificate(np.zeros((2, 1)), np.array([[0.0], [2.0]]), np.ones((2, 1)), 1.0, generator=0)


def test_the_module_names_every_number(project_root):
    text = (project_root / "docs" / "analysis.md").read_text(encoding="utf-8")
    public = ["tower_residual", "misaligned_by", "null_advantage", "staleness_bound", "certificate", "revision"]
    assert [name for name in public if f"`{name}`" not in text or not hasattr(consistency, name)] == []
