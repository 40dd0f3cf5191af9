"""Draft lengths by the clock: the criterion by hand, what is tried when, and texts that do not depend on it."""

import copy
import logging

import numpy as np
import pytest
import torch

from worldmtp.decoding import AdaptiveLength, generate
from worldmtp.decoding.adaptive import length_chooser, tokens_per_round
from worldmtp.decoding.head_drafts import head_drafter
from worldmtp.decoding.lean import make_runner
from worldmtp.decoding.sampling import DecodingPolicy, SamplingConfig
from worldmtp.decoding.session import DecodingSession

PAD, EOS = 0, 1


def test_tokens_of_a_round():
    """Half of first drafts and a quarter of first two: 1, 1.5 and 1.75 tokens."""
    assert tokens_per_round(np.array([0.5, 0.25])).tolist() == [1.0, 1.5, 1.75]


def play(chooser: AdaptiveLength, seconds_of, chances, num_rounds: int, num_rows: int = 8) -> list[int]:
    """Rounds in which draft j is accepted in a share ``chances[j]`` of the rows, the same rows for all j."""
    lengths = []
    for _ in range(num_rounds):
        length = chooser.choose(num_rows, len(chances))
        lengths.append(length)
        reach = np.arange(num_rows)[:, None] < np.round(num_rows * np.asarray(chances))
        accepted = np.minimum(reach.sum(axis=1), length)
        chooser.observe(num_rows, length, seconds_of(length), accepted, np.full(num_rows, length))
    return lengths


@pytest.mark.parametrize(
    ("seconds_of", "expected"),
    [
        # Tokens a round: 1, 1.75, 2.25, 2.5.
        (lambda length: 1.0, 3),  # drafts are free: the most tokens
        (lambda length: 1 + 0.3 * length, 2),  # 1, 1.346, 1.406, 1.316 tokens a second
        (lambda length: 1 + 0.5 * length, 1),  # 1, 1.167, 1.125, 1
        (lambda length: 1 + 2.0 * length, 0),  # 1, .583, .45, .357
    ],
    ids=["free", "cheap", "dear", "slower than none"],
)
def test_the_length_with_the_most_tokens_a_second(seconds_of, expected):
    lengths = play(AdaptiveLength(num_trials=2), seconds_of, (0.75, 0.5, 0.25), 30)
    assert lengths[:4] == [3, 3, 0, 0]
    assert set(lengths[4:]) == {expected}


def test_a_length_that_disappoints_is_left():
    """Between the ends times are taken to be on a line; a step at length 2 is seen when it is tried."""
    seconds = {0: 1.0, 1: 1.3, 2: 9.0, 3: 1.9}.__getitem__
    lengths = play(AdaptiveLength(num_trials=1, revisit_every=10), seconds, (0.75, 0.5, 0.25), 19)
    assert lengths[:3] == [3, 0, 2]
    assert set(lengths[3:9]) == {3}  # 1.316 tokens a second; length 1 is taken for 1.75 / 5
    assert set(lengths[9:]) == {1}  # tried in its turn: 1.346


def test_the_least_tried_has_its_turn():
    chooser = AdaptiveLength(num_trials=1, revisit_every=10)
    lengths = play(chooser, lambda length: 1 + 0.5 * length, (0.75, 0.5, 0.25), 40)
    assert lengths[:2] == [3, 0]
    assert [round_ for round_ in range(2, 40) if lengths[round_] != 1] == [9, 19, 29, 39]
    assert [lengths[round_] for round_ in (9, 19, 29, 39)] == [2, 3, 2, 0]


def test_other_numbers_of_rows_are_found_out_anew():
    """8 rows pay for drafts, 64 do not; 9 to 15 rows are about as many as 8."""
    chooser = AdaptiveLength(num_trials=1)
    assert play(chooser, lambda length: 1.0, (0.75, 0.5), 4, num_rows=8)[-1] == 2
    assert play(chooser, lambda length: 1.0 + 3 * length, (0.75, 0.5), 4, num_rows=64)[-1] == 0
    assert chooser.choose(15, 2) == 2
    assert chooser.choose(16, 2) == 2  # never seen: the longest is tried first
    chooser.observe(16, 2, 9.0, np.zeros(16, dtype=int), np.full(16, 2))
    assert chooser.choose(16, 2) == 0


def test_switching_off_is_said_once(caplog):
    with caplog.at_level(logging.INFO, logger="worldmtp.decoding.adaptive"):
        play(AdaptiveLength(num_trials=1), lambda length: 1 + 2.0 * length, (0.75, 0.5), 20)
    (record,) = caplog.records
    assert record.getMessage() == (
        "drafting is switched off at 8 rows: a round takes 1000.00 ms without and 5000.00 ms with 2 drafts, of which "
        "1.25 are accepted on average."
    )


def test_acceptance_follows_the_texts():
    """Memory 0.5: after three rounds of nothing and then three of everything, the latter weigh 7 to 7/8."""
    chooser = AdaptiveLength(memory=0.5)
    for accepted in (0, 0, 0, 1, 1, 1):
        chooser.observe(1, 1, 1.0, np.array([accepted]), np.array([1]))
    assert chooser.acceptance(2).tolist() == pytest.approx([1.75 / 1.96875, 0.0])


class Scripted:
    """Lengths in turn, whatever the clock says."""

    def __init__(self) -> None:
        self.lengths = []

    def choose(self, num_rows, max_length):
        self.lengths.append((0, 3, 0, 0, 1, 2, 0)[len(self.lengths) % 7] if max_length else 0)
        return min(self.lengths[-1], max_length)

    def observe(self, num_rows, length, seconds, num_accepted, num_drafted):
        assert seconds > 0
        assert len(num_accepted) == len(num_drafted) == num_rows
        assert bool((num_drafted <= length).all())


@pytest.mark.parametrize("draft", ["latent", "hydra", "sequential", "eagle", "parallel", "medusa", "lookup", "model"])
def test_texts_do_not_depend_on_the_lengths(model_of, tiny_trunk, ragged, draft):
    """Rounds without drafts between others: what a drafter keeps of the text must not fall behind."""
    model = model_of("llama", draft if draft not in ("lookup", "model") else "latent", 4, seed=1)
    small = tiny_trunk("llama", vocab_size=7, num_layers=1, dtype=torch.float64, seed=1)
    chosen = {"model": {"draft": small}, "lookup": {"draft": "lookup"}}.get(draft, {})
    ids, mask = ragged(6, 9, seed=3)
    options = {"max_new_tokens": 24, "eos_token_id": EOS, "pad_token_id": PAD}
    plain = generate(model, ids, mask, draft="none", **options)
    script = Scripted()
    found = generate(model, ids, mask, num_draft=script, **options, **chosen)
    assert torch.equal(found.sequences, plain.sequences)
    assert len(script.lengths) > 4


@pytest.mark.parametrize("head", ["latent", "hydra", "sequential", "eagle", "parallel", "medusa"])
def test_drafts_after_rounds_without_are_those_of_a_fresh_start(model_of, ragged, head):
    """What a drafter has kept of a text says the same as the text read anew, whatever rounds made it."""
    model = model_of("llama", head, 4, seed=1)
    ids, mask = ragged(3, 6, seed=3)
    policy = DecodingPolicy(SamplingConfig(), None)

    def session_over(prompts, is_real):
        drafter = head_drafter(model)
        session = DecodingSession(model, make_runner(model), drafter, policy, 48)
        session.prefill(prompts, is_real)
        return session, drafter

    session, drafter = session_over(ids, mask.bool())
    for length in (0, 3, 0, 0, 2, 1, 0, 3):
        session.advance(length)
        texts = session.texts
        is_real = torch.arange(texts.ids.shape[1]) < torch.from_numpy(texts.num_cached)[:, None]
        newest = texts.newest
        fresh, fresh_drafter = session_over(texts.ids.clone(), is_real)
        fresh.texts.ids.scatter_(1, torch.from_numpy(fresh.texts.num_cached)[:, None], newest)
        # The drafter keeps what it is asked for, so the one that goes on is asked for a copy of itself.
        kept = copy.deepcopy((texts.ids, drafter))
        expected = fresh_drafter.propose(fresh.texts, policy, 3).tokens
        assert torch.equal(kept[1].propose(texts, policy, 3).tokens, expected)
        texts.ids.copy_(kept[0])


def test_drafts_after_rounds_without_are_as_good(model_of, tiny_trunk, ragged):
    """A model that drafts for itself is always right, so every draft is accepted, whatever was left out before."""
    model = model_of("llama", "latent", 2)
    ids, mask = ragged(4, 9, seed=3)
    found = generate(
        model, ids, mask, draft=model.trunk, num_draft=Scripted(), max_new_tokens=24, pad_token_id=PAD
    )  # fmt: skip
    assert found.accepted_per_depth.tolist() == found.drafted_per_depth.tolist()
    assert found.drafted_per_depth[0] > 0


def test_auto_decodes_the_same_text(model_of, ragged):
    model = model_of("qwen3", "hydra", 4)
    ids, mask = ragged(5, 8, seed=2)
    options = {"max_new_tokens": 20, "eos_token_id": EOS, "pad_token_id": PAD}
    plain = generate(model, ids, mask, draft="none", **options)
    assert torch.equal(generate(model, ids, mask, num_draft="auto", **options).sequences, plain.sequences)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draft": "fast"}, r"num_draft='fast' is unknown; give a number of tokens, or 'auto'\."),
        ({"num_draft": "auto", "tree": (2, 2)}, "chooses the length of merged chains; leave tree and three_phase out"),
        ({"num_draft": "auto", "three_phase": True}, "leave tree and three_phase out"),
    ],
    ids=["unknown", "tree", "three phases"],
)
def test_misuse(model_of, ragged, options, message):
    with pytest.raises(ValueError, match=message):
        generate(model_of(), *ragged(1, 3, seed=0), max_new_tokens=2, **options)


@pytest.mark.parametrize("length", [2.0, True, [2]])
def test_a_length_of_the_wrong_kind(length):
    with pytest.raises(TypeError, match=r"num_draft=.* has type .*, expected a number of tokens, 'auto' or"):
        length_chooser(length, can_choose=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_trials": 0}, "num_trials=0 must be at least 1"),
        ({"revisit_every": 0}, "revisit_every=0 must be at least 1"),
        ({"memory": 0.0}, r"memory=0.0 must lie in \(0, 1\]"),
    ],
    ids=["trials", "revisits", "memory"],
)
def test_settings_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveLength(**arguments)
