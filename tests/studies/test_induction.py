"""Pairs stand where they are asked for, and only what is asked counts."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from worldmtp.studies.probes import InductionTexts, induction_accuracy, plant_pairs, rarest_tokens

VOCAB = 16
RARE = torch.tensor([12, 13, 14, 15])
WINDOWS = torch.randint(12, (20, 40), generator=torch.Generator().manual_seed(0))  # no rare token


def planted(num_occurrences: int = 4) -> InductionTexts:
    return plant_pairs(WINDOWS, RARE, torch.Generator().manual_seed(1), num_occurrences)


def test_pairs_are_planted_and_asked_from_the_second_on():
    texts = planted()
    for row, (ids, asked) in enumerate(zip(texts.input_ids.tolist(), texts.asked.tolist(), strict=True)):
        places = [t for t, token in enumerate(ids) if token >= 12]
        firsts, seconds = places[::2], places[1::2]
        assert len(firsts) == 4
        assert seconds == [t + 1 for t in firsts]
        assert all(later - earlier >= 4 for earlier, later in pairwise(firsts))
        assert len({ids[t] for t in firsts}) == len({ids[t] for t in seconds}) == 1
        assert ids[firsts[0]] != ids[seconds[0]]
        assert [t for t, question in enumerate(asked) if question] == firsts[1:]
        kept = [t for t in range(40) if t not in places]
        assert [ids[t] for t in kept] == WINDOWS[row, kept].tolist()
    assert int(WINDOWS.max()) < 12  # what was handed in is as it was
    # Texts have pairs of their own: 12 ordered pairs, 20 texts.
    assert len({tuple(ids[ids >= 12][:2].tolist()) for ids in texts.input_ids}) > 4


def test_the_generator_alone_decides(global_rng_untouched):
    with global_rng_untouched():
        assert torch.equal(planted().input_ids, planted().input_ids)


def answering(make_model, predict):
    """A model whose greedy token after each position is what ``predict`` says of the texts."""
    model = make_model(vocab_size=VOCAB, depth=1)
    model.forward = lambda input_ids, **_: SimpleNamespace(logits=functional.one_hot(predict(input_ids), VOCAB).float())
    return model


def copy_what_followed(input_ids: torch.Tensor) -> torch.Tensor:
    """After each token what followed it the last time, and zero after a token that is new."""
    predicted = torch.zeros_like(input_ids)
    for row, ids in enumerate(input_ids.tolist()):
        followed: dict[int, int] = {}
        for t, token in enumerate(ids):
            predicted[row, t] = followed.get(token, 0)
            if t + 1 < len(ids):
                followed[token] = ids[t + 1]
    return predicted


def test_a_copier_is_right_wherever_it_is_asked(make_model):
    assert induction_accuracy(answering(make_model, copy_what_followed), planted()) == 1.0


def test_what_is_not_asked_does_not_count(make_model):
    texts = planted()
    right, asked = texts.input_ids.roll(-1, dims=1), texts.asked
    wrong = (right + 1) % VOCAB
    only_asked = answering(make_model, lambda ids: torch.where(asked, right, wrong))
    only_others = answering(make_model, lambda ids: torch.where(asked, wrong, right))
    assert induction_accuracy(only_asked, texts) == 1.0
    assert induction_accuracy(only_others, texts) == 0.0
    # Three questions a text; the first text's alone: 3 of 60.
    first_text = torch.zeros_like(asked)
    first_text[0] = True
    one_text = answering(make_model, lambda ids: torch.where(first_text, right, wrong))
    assert induction_accuracy(one_text, texts) == pytest.approx(3 / 60)


def test_rarest_tokens_do_occur_and_often_enough():
    # Counts: 0 three, 1 none, 2 one, 3 two, 4 one.
    tokens = torch.tensor([0, 3, 0, 2, 4, 3, 0])
    assert rarest_tokens(tokens, 5, 3, min_count=1).tolist() == [2, 4, 3]
    assert rarest_tokens(tokens, 5, 3, min_count=2).tolist() == [3, 0]


def test_what_cannot_be_planted():
    with pytest.raises(ValueError, match="1 rare tokens were given; a pair needs 2"):
        plant_pairs(WINDOWS, RARE[:1], torch.Generator())
    with pytest.raises(ValueError, match="windows of 40 tokens hold 10 occurrences 4 tokens apart, not 11"):
        planted(11)
    assert int(planted(10).asked.sum()) == 20 * 9
