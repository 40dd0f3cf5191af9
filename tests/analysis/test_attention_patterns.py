"""Patterns of attention: keys and masses worked by hand, laws, and what is no attention."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmtp.analysis.attention_patterns import (
    MASSES,
    PATTERNS,
    AttendedTexts,
    attention_entropy,
    attention_scalars,
    join_sums,
    pattern_keys,
    pattern_sums,
    uniform_attention,
    uniform_scores,
)

# Places       0 1 2 3 4 5 6 7; a prompt of three tokens, then the policy's, but for places 5 and 6, a world's reply.
TEXT = np.array([[7, 1, 2, 1, 2, 7, 1, 9]])


def texts(queries, ids=TEXT, mask=None, prompt=3, replies=(5, 6), known=None):
    reply_mask = np.isin(np.arange(ids.shape[1]), replies)[None].repeat(len(ids), axis=0)
    queries = np.array(queries)
    return AttendedTexts(
        input_ids=ids,
        attention_mask=np.ones(ids.shape, dtype=bool) if mask is None else np.array(mask, dtype=bool),
        prompt_length=np.full(len(ids), prompt),
        reply_mask=reply_mask,
        queries=queries,
        query_mask=np.ones(queries.shape, dtype=bool) if known is None else np.array(known),
    )


def places(keys, query=0, row=0):
    return {name: np.flatnonzero(keys[name][row, query]).tolist() for name in MASSES}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        # Token 2, next 1: an earlier 2 does not exist. The prompt holds the 1 at place 1.
        (2, {"sink": [0], "previous": [1], "induction": [], "prompt": [1, 2], "goal": [1], "reply": []}),
        # Token 2, next 7: the 2 at place 2 was followed by place 3. The prompt holds the 7 at place 0.
        (4, {"sink": [0], "previous": [3], "induction": [3], "prompt": [1, 2], "goal": [0], "reply": []}),
        # Token 1, next 9: the 1s at places 1 and 3 were followed by 2 and 4. No 9 in the prompt. Replies 5 and 6.
        (6, {"sink": [0], "previous": [5], "induction": [2, 4], "prompt": [1, 2], "goal": [], "reply": [5, 6]}),
        # Token 9, the last: nothing comes next.
        (7, {"sink": [0], "previous": [6], "induction": [], "prompt": [1, 2], "goal": [], "reply": [5, 6]}),
        # From the first token there is only itself; next is 1, which has not been seen.
        (0, {"sink": [], "previous": [], "induction": [], "prompt": [], "goal": [], "reply": []}),
    ],
)
def test_keys_of_each_pattern_by_hand(query, expected):
    assert places(pattern_keys(texts([[query]]))) == expected


def test_an_occurrence_just_before_is_followed_by_the_query_itself():
    keys = pattern_keys(texts([[2]], ids=np.array([[3, 4, 4, 5]]), replies=()))
    assert places(keys)["induction"] == []


def test_padding_on_the_left_moves_the_sink_and_the_prompt():
    # Two places of padding that hold token 1, as the query does: they are no earlier occurrence.
    ids = np.array([[1, 1, 5, 6, 1, 6, 1]])
    keys = pattern_keys(texts([[4, 6]], ids=ids, mask=[[0, 0, 1, 1, 1, 1, 1]], prompt=2, replies=()))
    nothing = {"induction": [], "reply": []}
    assert places(keys, 0) == {"sink": [2], "previous": [3], "prompt": [3], "goal": [3], **nothing}
    assert places(keys, 1) == {
        "sink": [2], "previous": [5], "prompt": [3], "goal": [], "induction": [5], "reply": [],
    }  # fmt: skip


def test_padding_on_the_right_is_nothing_that_comes_next():
    ids = np.array([[5, 6, 5, 6]])
    keys = pattern_keys(texts([[2]], ids=ids, mask=[[1, 1, 1, 0]], prompt=2, replies=()))
    assert places(keys)["goal"] == []


def test_masses_and_entropy_by_hand():
    # Two heads at queries 4 and 6. The first is (1/2 on the sink, 1/2 on the token before), the second looks at itself.
    attention = np.zeros((1, 1, 2, 2, 8))
    attention[0, 0, 0, 0, [0, 3]] = 0.5
    attention[0, 0, 0, 1, [0, 5]] = 0.5
    attention[0, 0, 1, [0, 1], [4, 6]] = 1.0
    sums = pattern_sums(attention, texts([[4, 6]]))
    # goal: query 4 alone has one (place 0); induction: place 3 at query 4, places 2 and 4 at query 6; reply: query 6
    # alone, whose token before, 5, and the query itself, 6, are a reply.
    expected = {
        "sink": (0.5, 0.0),
        "previous": (0.5, 0.0),
        "induction": (0.25, 0.0),
        "prompt": (0.0, 0.0),
        "goal": (0.5, 0.0),
        "reply": (0.5, 1.0),
        "entropy": (np.log(2), 0.0),
    }
    for number, name in enumerate(PATTERNS):
        np.testing.assert_allclose(sums.mean()[number, 0], expected[name], rtol=0, atol=1e-15, err_msg=name)
    assert sums.count[:, 0].tolist() == [2, 2, 2, 2, 1, 1, 2]


def test_floor_by_hand():
    # Query 4 sees five keys, query 6 seven.
    found = dict(zip(PATTERNS, uniform_scores(texts([[4, 6]])), strict=True))
    each = (1 / 5 + 1 / 7) / 2
    assert found == pytest.approx(
        {
            "sink": each,
            "previous": each,
            "induction": (1 / 5 + 2 / 7) / 2,
            "prompt": 2 * each,
            "goal": 1 / 5,
            "reply": 2 / 7,
            "entropy": (np.log(5) + np.log(7)) / 2,
        },
        rel=1e-12,
    )


def test_a_filler_counts_for_nothing():
    whole = pattern_sums(uniform_attention(texts([[4, 6]])), texts([[4, 6]]))
    known = [[True, True, False]]
    padded = texts([[4, 6, 0]], known=known)
    found = pattern_sums(uniform_attention(padded), padded)
    np.testing.assert_array_equal(found.total, whole.total)
    np.testing.assert_array_equal(found.count, whole.count)
    attention = uniform_attention(padded)
    attention[:, :, :, 2, :2] = 0.5  # what a probe gives of a filler
    np.testing.assert_array_equal(pattern_sums(attention, padded).total, whole.total)


def test_means_weigh_queries_not_sequences():
    two = texts([[4, 6], [7, 0]], ids=TEXT.repeat(2, axis=0), known=[[True, True], [True, False]])
    sums = pattern_sums(uniform_attention(two), two)
    assert sums.mean()[0, 0, 0] == pytest.approx((1 / 5 + 1 / 7 + 1 / 8) / 3)
    halves = [two.select(slice(1)), two.select(slice(1, 2))]
    joined = join_sums([pattern_sums(uniform_attention(part), part) for part in halves])
    np.testing.assert_array_equal(joined.total, sums.total)
    np.testing.assert_array_equal(joined.count, sums.count)


def test_a_pattern_that_no_text_has_is_undefined_and_not_logged():
    alone = texts([[2]], replies=())
    mean = pattern_sums(uniform_attention(alone), alone).mean()
    assert np.isnan(mean[PATTERNS.index("reply")]).all()
    scalars = attention_scalars(mean, uniform_scores(alone))
    assert not [tag for tag in scalars if "reply" in tag or "induction" in tag]
    assert scalars["attention/layer_1/sink"] == pytest.approx(1 / 3)


def test_strongest_head_has_the_most_mass_and_the_least_entropy():
    mean = np.zeros((len(PATTERNS), 2, 3))
    mean[0], mean[-1] = [[0.1, 0.6, 0.2], [0.0, 0.0, 0.3]], [[2.0, 1.0, 3.0], [0.5, 0.5, 0.5]]
    scalars = attention_scalars(mean, np.full(len(PATTERNS), 0.25))
    assert scalars["attention/layer_1/sink"] == pytest.approx(0.3)
    assert scalars["attention/layer_1/sink_strongest"] == 0.6
    assert scalars["attention/layer_2/sink_strongest"] == 0.3
    assert scalars["attention/layer_1/entropy_lowest"] == 1.0
    assert scalars["attention/entropy_uniform"] == 0.25


def test_maps_of_other_texts_are_refused():
    attention = uniform_attention(texts([[4, 6]]))
    with pytest.raises(ValueError, match=r"adds up to 0\.7143 .. 1\.0000, not 1"):
        pattern_sums(attention, texts([[4, 4]]))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_masses_lie_between_nothing_and_all_and_entropy_below_the_uniform(seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 4, size=(3, 9))
    queries = np.sort(rng.integers(0, 9, size=(3, 4)), axis=1)
    some = texts(queries, ids=ids, prompt=4)
    attention = rng.random((3, 2, 2, 4, 9)) * some.visible()[:, None, None]
    attention /= attention.sum(axis=-1, keepdims=True)
    sums = pattern_sums(attention, some)
    assert (sums.total >= 0).all()
    assert (sums.total[:-1] <= sums.count[:-1, :, None, None] + 1e-9).all()
    flat = attention_entropy(uniform_attention(some))
    assert (attention_entropy(attention) <= flat + 1e-9).all()
    # The first token and the rest of the prompt have no key in common, nor has a reply any with them.
    keys = pattern_keys(some)
    assert not (keys["sink"] & keys["prompt"]).any()
    assert not (keys["prompt"] & keys["reply"]).any()
