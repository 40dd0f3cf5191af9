"""A model of replies as who answers in a search: what it is asked, and how the trunk reads what it says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from worldmtp.dynamics import make_world_model
from worldmtp.dynamics.conversations import ForeseenReplies
from worldmtp.dynamics.turns import NOTHING, ImaginedReplies, Turns
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.search import ConversationDynamics

N = NOTHING


class Echo:
    """A model of replies: what was said, twice, less what is longer than two; pays a tenth of the turn's number."""

    max_reply = 4

    def __init__(self) -> None:
        self.asked: list[Turns] = []

    def imagine(self, turns: Turns, turn: Tensor, generator: torch.Generator) -> ImaginedReplies:
        self.asked.append(turns)
        said = turns.said[torch.arange(len(turns)), turn]
        replies = torch.where((said == 4)[:, :1], N, torch.cat([said, said], dim=1))
        many = (len(turns),)
        return ImaginedReplies(replies, turn / 10, turn >= 2, torch.zeros(many), torch.zeros(many).bool())


def test_a_model_of_replies_is_asked_with_what_was_said_and_heard() -> None:
    model = Echo()
    source = ForeseenReplies(model, max_turns=3)
    turns = Turns(
        opening=torch.tensor([[1, 2], [3, N]]),
        said=torch.tensor([[[5, 6]], [[N, N]]]),
        replies=torch.tensor([[[7, N]], [[N, N]]]),
        rewards=torch.zeros(2, 1),
        ended=torch.zeros(2, 1).bool(),
        mask=torch.tensor([[True], [False]]),
    )
    rows = torch.arange(2)
    heard = source.begin(turns, rows)
    generator = torch.Generator()
    heard, answered = source.answer(heard, torch.tensor([[8, 9], [4, N]]), generator)
    assert answered.replies.tolist() == [[8, 9, 8, 9], [N] * 4]
    assert answered.rewards.tolist() == pytest.approx([0.1, 0.0])
    heard, answered = source.answer(heard, torch.tensor([[6, 5], [1, 1]]), generator)
    assert answered.ended.tolist() == [True, False]
    asked = model.asked[-1]
    assert asked.said.tolist() == [[[5, 6], [8, 9], [6, 5]], [[4, N], [1, 1], [N, N]]]
    assert asked.replies[:, :2].tolist() == [[[7, N, N, N], [8, 9, 8, 9]], [[N] * 4, [N] * 4]]
    assert asked.opening.tolist() == [[1, 2], [3, N]]
    assert model.asked[0].said[0].tolist() == [[5, 6], [8, 9], [N, N]]
    # Three turns at most; who has had four may have one more.
    assert source.turns_left(heard).tolist() == [1, 1]
    assert source.turns_left(source.begin(turns, rows)).tolist() == [2, 3]
    long = Turns(turns.opening, turns.said, torch.full((2, 1, 5), 7), turns.rewards, turns.ended, turns.mask)
    with pytest.raises(
        ValueError, match="a reply of 5 tokens where the model of replies has room for 4; train it with"
    ):
        source.begin(long, rows)
    with pytest.raises(ValueError, match="max_turns=0 must be at least 1"):
        ForeseenReplies(model, 0)


def test_the_trunk_reads_replies_as_it_reads_the_text_with_them(tiny_trunk: Callable[..., Any]) -> None:
    """Replies of none to four tokens, side by side: logits and value are those of each whole text, to 1e-9."""
    trunk = tiny_trunk("llama", vocab_size=11, hidden_size=16, dtype=torch.float64)
    model = MTPModel.from_trunk(trunk, MTPConfig(head="sequential", depth=2), torch.Generator().manual_seed(0)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    oracle = make_world_model("oracle", model, generator)
    dynamics = ConversationDynamics(oracle, ForeseenReplies(Echo(), 9), eos_id=0, max_turn=2, generator=generator)
    texts = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    source, said = ForeseenReplies(Echo(), 9), [[5, 6], [4, 0], [3, 0]]
    ids = torch.tensor(texts)
    nobody = Turns(
        ids, *(torch.full((3, 1, 2), N) for _ in range(2)), torch.zeros(3, 1), *(torch.zeros(3, 1).bool(),) * 2
    )
    many = torch.full((3,), 20)
    with torch.no_grad():
        inner = oracle.encode(ids, torch.ones_like(ids).bool())
        state = dynamics.begin(inner, source.begin(nobody, torch.arange(3)), torch.full((3, 2), N), many, many)
        for tokens in torch.tensor(said).T:
            state = dynamics.step(state, tokens)
        found = dynamics.predict(state)
        wholes = [[1, 2, 3, 5, 6, 5, 6, 5, 6], [4, 5, 6, 4, 0], [7, 8, 9, 3, 0, 3, 0, 3, 0]]
        # Of the third, whose turn EOS ended, the reply holds EOS as well: Echo says all that it heard.
        assert found.logits is not None
        for row, whole in enumerate(wholes):
            text = torch.tensor([whole])
            expected = oracle.predict(oracle.encode(text, torch.ones_like(text).bool()))
            assert expected.logits is not None
            torch.testing.assert_close(found.logits[row], expected.logits[0], atol=1e-9, rtol=0)
            torch.testing.assert_close(found.value[row], expected.value[0], atol=1e-9, rtol=0)
