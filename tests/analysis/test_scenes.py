"""A text of an artefact as a scene: what stands where, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from worldmtp.analysis.scenes import TopTokens, scene_of
from worldmtp.tracking.scenes import Guess, SceneRow

HEADS = [np.array([[0.75, 0.25], [0.5, 0.5]]), np.array([[0.9, 0.1], [0.2, 0.8]])]


def tops(artefact):
    """Names two tokens of everything: 1 with probability .6, then 0 with .4."""
    batch, length, depth = artefact.head_logprob.shape
    horizon = artefact.imagined_tokens.shape[2]

    def filled(values, width):
        return np.broadcast_to(np.array(values), (batch, length, width, 2))

    return TopTokens(
        filled([1, 0], depth), filled([0.6, 0.4], depth), filled([1, 0], horizon), filled([0.6, 0.4], horizon)
    )


@pytest.fixture
def artefact(make_artefact):
    """Row 0 is 0 | 0 0 0, row 127 is 1 | 1 1 1."""
    made = make_artefact(HEADS)
    imagined = np.full((*made.input_ids.shape, 2), np.nan)
    imagined[127, 0], imagined[127, 2, 0] = 0.5, 0.5
    returns = np.full(made.input_ids.shape, np.nan)
    returns[127, 0] = 0.125
    return replace(
        made,
        imagined_tokens=np.zeros(imagined.shape, dtype=np.int64),
        imagined_token_prob=imagined,
        imagined_return=returns,
    )


def test_what_depths_said_stands_under_the_token_spoken_of(artefact):
    scene = scene_of(artefact, tops(artefact), 127)
    assert (scene.prompt_length, scene.total, scene.replies) == (1, 1.0, ())
    top = ((artefact.tokens_text[1], 0.6), (artefact.tokens_text[0], 0.4))
    first, second = scene.predicted
    assert (first.label, second.label) == ("depth 1", "depth 2")
    # Of a 1 after a 1 the trunk holds .5; depth 2 holds .8 of it two tokens before: kept for certain.
    assert first.guesses[0] is None
    assert [guess.top for guess in first.guesses[1:]] == [top] * 3
    assert [guess.realized for guess in first.guesses[1:]] == pytest.approx([0.5] * 3)
    # The root of depth 2 has seen the whole prompt, its one token.
    assert second.guesses[:2] == (None, None)
    assert [guess.realized for guess in second.guesses[2:]] == pytest.approx([0.8, 0.8])
    assert [guess.accept for guess in second.guesses[2:]] == [1.0, 1.0]


def test_a_draft_less_probable_than_by_the_trunk_is_kept_as_often(make_artefact):
    # Row 0: of a 0 after a 0 the trunk holds .75 and a depth 2 that holds .3 keeps it with .3 / .75.
    low = make_artefact([HEADS[0], np.array([[0.3, 0.7], [0.2, 0.8]])])
    kept = [guess.accept for guess in scene_of(low, tops(low), 0).predicted[1].guesses[2:]]
    assert kept == pytest.approx([0.4, 0.4])


def test_what_was_imagined_stands_behind_its_root(artefact):
    scene = scene_of(artefact, tops(artefact), 127)
    guess = Guess(((artefact.tokens_text[1], 0.6), (artefact.tokens_text[0], 0.4)))
    assert scene.imagined == (
        SceneRow("after 0", (None, guess, guess, None), root=0),
        SceneRow("after 2", (None, None, None, guess), root=2),
    )
    assert scene.imagined_return == (0.125, None, None, None)
    assert scene_of(artefact, tops(artefact), 127, shows_returns=False).imagined_return == (None,) * 4
    assert scene_of(artefact, tops(artefact), 0).imagined == ()
