"""What is given to whole answers: beside the model's own log-likelihood, by enumeration, and counted by hand."""

import itertools
from dataclasses import replace

import pytest
import torch

from worldmtp.dynamics import reply_answers
from worldmtp.dynamics.replies import ReplyModel
from worldmtp.dynamics.reply_answers import (
    answer_entropies,
    answer_logprobs,
    open_loop_logprobs,
    other_replies,
    times_asked,
)
from worldmtp.dynamics.reply_config import ReplyModelConfig
from worldmtp.dynamics.reply_network import ReplySizes
from worldmtp.dynamics.turns import NOTHING, Turns

N = NOTHING
SIZES = ReplySizes(vocab_size=2, opening=1, said=1, reply=2, num_turns=3, num_reward_bins=2)
EVERY = [[N, N], [0, N], [1, N], [0, 0], [0, 1], [1, 0], [1, 1]]


def make_model(history: bool = True) -> ReplyModel:
    """Random weights of moderate size in float64; everything has been seen."""
    generator = torch.Generator().manual_seed(1)
    config = ReplyModelConfig(num_members=2, hidden_size=4, num_heads=2)
    model = ReplyModel(SIZES, config, history, torch.tensor([0.0, 1.0], dtype=torch.float64), generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    for seen in (model.seen_tokens, model.seen_rewards, model.seen_ends):
        seen.fill_(True)
    return model


def conversations(*rows: tuple[int, list[tuple[int, list[int], bool]]]) -> Turns:
    """Rows of an opening and turns, each of a token said, a reply of two places, and whether that ended it."""
    longest = max(len(turns) for _, turns in rows)
    padded = [turns + [(N, [N, N], False)] * (longest - len(turns)) for _, turns in rows]
    return Turns(
        opening=torch.tensor([[opening] for opening, _ in rows]),
        said=torch.tensor([[[said] for said, _, _ in turns] for turns in padded]),
        replies=torch.tensor([[reply for _, reply, _ in turns] for turns in padded]),
        rewards=torch.zeros(len(rows), longest, dtype=torch.float64),
        ended=torch.tensor([[ended for _, _, ended in turns] for turns in padded]),
        mask=torch.tensor([[said != N for said, _, _ in turns] for turns in padded]),
    )


TALK = conversations(
    (0, [(1, [0, 1], False), (0, [N, N], False), (1, [1, N], True)]),
    (1, [(0, [1, N], False)]),
    (0, [(1, [0, 0], False), (1, [0, N], False)]),
)


@pytest.mark.parametrize("history", [False, True])
def test_they_are_those_of_all_turns_at_once(history: bool) -> None:
    model = make_model(history)
    said, found = model.foretold(TALK), answer_logprobs(model, TALK)
    tokens = said.log_tokens.gather(3, said.classes.clamp_min(0).expand(2, -1, -1)[..., None])[..., 0]
    reply = torch.where(said.classes == N, 0.0, tokens).sum(dim=2)
    end = said.log_ends.gather(2, TALK.ended[TALK.mask].long().expand(2, -1)[..., None])[..., 0]
    torch.testing.assert_close(found.reply[:, TALK.mask], reply)
    torch.testing.assert_close(found.end[:, TALK.mask], end)
    assert found.reply[:, ~TALK.mask].isnan().all()
    member = torch.tensor([1, 0, 1])
    expected = (reply + end)[torch.tensor([1, 1, 1, 0, 1, 1]), torch.arange(6)]
    torch.testing.assert_close(found.of_members(member)[TALK.mask], expected)


def test_all_answers_add_up_to_one() -> None:
    model = make_model()
    every = list(itertools.product(EVERY, (False, True)))
    turn = torch.zeros(len(every), dtype=torch.int64)
    vectors = model.network.turn_vectors(TALK.select(turn), turn)
    replies, ended = torch.tensor([reply for reply, _ in every]), torch.tensor([end for _, end in every])
    reply, end = model.answer_logprobs(vectors, turn, replies, ended)
    torch.testing.assert_close((reply + end).exp().sum(dim=1), torch.ones(2, dtype=torch.float64))


def test_an_answer_for_which_there_is_no_room_is_as_good_as_impossible() -> None:
    """Three tokens where two fit; and two where every reply that was heard had one at most."""
    model = make_model()
    turn = torch.zeros(1, dtype=torch.int64)
    vectors = model.network.turn_vectors(TALK.select(turn), turn)
    going_on = torch.tensor([False])
    long, _ = model.answer_logprobs(vectors, turn, torch.tensor([[0, 0, 1]]), going_on)
    assert (long < -1e3).all()
    model.seen_tokens[1] = torch.tensor([False, False, True])  # after one token, the end alone
    vectors, turn = vectors.expand(-1, 2, -1), turn.expand(2)
    reply, _ = model.answer_logprobs(vectors, turn, torch.tensor([[0, 1], [0, N]]), going_on.expand(2))
    assert (reply[:, 0] < -1e3).all()
    assert (reply[:, 1] > -50).all()
    wide = Turns(**(vars(TALK) | {"replies": torch.nn.functional.pad(TALK.replies, (0, 1), value=1)}))
    assert (answer_logprobs(model, wide).reply[:, wide.mask] < -1e3).all()


def test_entropies_are_those_of_the_member_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the sum over all 14 answers; 4000 draws leave an error of about a hundredth."""
    monkeypatch.setattr(reply_answers, "_DRAWS", 4000)
    model, member = make_model(), torch.tensor([1, 0, 1])
    found = answer_entropies(model, TALK, member, torch.Generator().manual_seed(0))
    every = list(itertools.product(EVERY, (False, True)))
    assert found[~TALK.mask].isnan().all()
    for row, number in torch.nonzero(TALK.mask).tolist():
        rows, turn = torch.full((len(every),), row), torch.full((len(every),), number)
        vectors = model.network.turn_vectors(TALK.select(rows), turn)
        replies, ended = torch.tensor([reply for reply, _ in every]), torch.tensor([end for _, end in every])
        logprob = sum(model.answer_logprobs(vectors, turn, replies, ended))[member[row]]
        exact = -(logprob.exp() * logprob).sum()
        assert float(found[row, number]) == pytest.approx(float(exact), abs=0.08)


def test_how_often_a_world_was_asked_the_same() -> None:
    """The second turn of the first two rows follows the same text; of the third the reply before differed."""
    asked_twice = [(1, [0, N], False), (1, [1, N], False)]
    turns = conversations(
        (0, asked_twice),
        (0, [(1, [0, N], False), (1, [1, N], True)]),  # the same reply, and the end
        (0, [(1, [1, N], False), (1, [1, N], False)]),
        (1, [(1, [0, N], False)]),  # another opening
    )
    asked, alike = times_asked(turns, torch.zeros(4, dtype=torch.int64))
    assert asked.tolist() == [[3, 2], [3, 2], [3, 1], [1, 0]]
    assert alike.tolist() == [[2, 1], [2, 1], [1, 1], [1, 0]]
    asked, alike = times_asked(turns, torch.tensor([0, 1, 0, 0]))
    assert asked.tolist() == [[2, 1], [1, 1], [2, 1], [1, 0]]
    assert alike.tolist() == [[1, 1], [1, 1], [1, 1], [1, 0]]


def test_an_opening_is_not_taken_for_a_turn() -> None:
    """A text that begins with what another says later is another text."""
    turns = conversations((1, [(1, [1, N], False)]), (1, [(0, [1, N], False), (1, [1, N], False)]))
    asked, _ = times_asked(turns, torch.tensor([0, 0]))
    assert asked.tolist() == [[1, 0], [1, 1]]
    shorter = replace(turns, opening=torch.tensor([[N], [1]]))
    assert times_asked(shorter, torch.tensor([1, 0]))[0].tolist() == [[1, 0], [1, 1]]


def test_other_replies_are_asked_about_in_the_same_text() -> None:
    """The second of two turns is given the first one's reply; what was heard before it stays."""
    model = make_model()
    turns = TALK.select(torch.tensor([0]))
    swapped = turns.replies.clone()
    swapped[0, 1] = turns.replies[0, 0]
    found = answer_logprobs(model, turns, swapped)
    vectors = model.network.turn_vectors(turns, torch.tensor([1]))
    expected, _ = model.answer_logprobs(vectors, torch.tensor([1]), turns.replies[:, 0], turns.ended[:, 1])
    torch.testing.assert_close(found.reply[:, 0, 1], expected[:, 0])
    torch.testing.assert_close(found.reply[:, 0, [0, 2]], answer_logprobs(model, turns).reply[:, 0, [0, 2]])


def test_an_open_loop_is_the_mean_over_what_was_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second reply, over all first answers by which the conversation goes on, by their probability."""
    monkeypatch.setattr(reply_answers, "_PATHS", 4000)
    model, turns, every = make_model(), TALK.select(torch.tensor([0])), len(EVERY)
    found = open_loop_logprobs(model, turns, torch.tensor([1]), torch.Generator().manual_seed(0))
    real = answer_logprobs(model, turns).reply[1, 0]
    assert float(found[0, 0]) == pytest.approx(float(real[0]))
    rows = torch.zeros(every, dtype=torch.int64)
    paths = turns.select(rows)
    paths.replies[:, 0] = torch.tensor(EVERY)
    first = answer_logprobs(model, Turns(**(vars(paths) | {"ended": torch.zeros_like(paths.ended)})))
    weight = (first.reply + first.end)[1, :, 0].exp()  # the first answer, and going on
    exact = (weight * answer_logprobs(model, paths).reply[1, :, 1].exp()).sum() / weight.sum()
    assert float(found[0, 1].exp()) == pytest.approx(float(exact), abs=0.03)
    assert float(found[0, 1]) != pytest.approx(float(real[1]), abs=0.05), "the real text would be told from it"


def test_of_a_sure_model_the_open_loop_is_the_real_text() -> None:
    """Each place has had one token alone, so that what is drawn is what came; after a drawn end nothing is known."""
    model = make_model()
    turns = conversations((0, [(1, [0, 1], False), (0, [0, 1], False)]), (1, [(0, [0, 1], False)]))
    model.seen_tokens.zero_(), model.seen_ends.zero_()
    model.seen_tokens[0, 0] = model.seen_tokens[1, 1] = model.seen_ends[0] = True
    member, generator = torch.tensor([0, 1]), torch.Generator().manual_seed(0)
    found = open_loop_logprobs(model, turns, member, generator)
    torch.testing.assert_close(found[turns.mask], torch.zeros(3, dtype=torch.float64))
    assert found[~turns.mask].isnan().all()
    model.seen_ends[:] = torch.tensor([False, True])
    found = open_loop_logprobs(model, turns, member, generator)
    assert found.isnan().tolist() == [[False, True], [False, True]]


def test_another_reply_is_of_a_turn_further_away_and_differs() -> None:
    """The first of four turns may be given the third's or the fourth's; where all are alike, another conversation's."""
    turns = conversations(
        (0, [(1, [0, N], False), (1, [1, N], False), (1, [0, N], False), (1, [1, 1], False)]),
        (0, [(1, [0, N], False), (0, [0, N], False)]),
    )
    seen = []
    for seed in range(20):
        replies, there = other_replies(turns, torch.Generator().manual_seed(seed))
        assert there[0, [0, 1, 3]].all(), "for the third, all of its own conversation that is far enough is alike"
        assert (replies != turns.replies).any(dim=2)[there].all()
        seen.append([tuple(reply) for reply in replies[0].tolist()])
    assert {each[0] for each in seen} == {(1, 1)}, "the third says the same as the first"
    assert {each[3] for each in seen} == {(0, N), (1, N)}
    alike = conversations((0, [(1, [0, N], False)]), (0, [(1, [0, N], False)]))
    assert not other_replies(alike, torch.Generator().manual_seed(0))[1].any()
