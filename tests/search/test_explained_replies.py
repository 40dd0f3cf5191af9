"""A tree through replies as nodes to read: every visit, draw and worth by hand, in a world that answers by a script."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.dynamics import acting_policy
from worldmtp.dynamics.conversations import Answered
from worldmtp.dynamics.protocol import Prediction
from worldmtp.dynamics.states import StateTable
from worldmtp.dynamics.turns import NOTHING, Turns
from worldmtp.search import ConversationDynamics, SearchConfig, SearchedPolicy, plan
from worldmtp.search.explain import DrawnReply, TreeNode, line_of, tree_of

WORD, EOS, HEADS, TAILS = 1, 2, 3, 4


@dataclass(frozen=True)
class LastToken(StateTable):
    """Texts of which the last token is all that matters."""

    token: Int[Tensor, " state"]

    @property
    def latent(self) -> Float[Tensor, "state 1"]:
        """The token."""
        return self.token[:, None].double()


class OneWord:
    """A policy whose every turn is the word and EOS; worth .4 behind heads, and nothing elsewhere."""

    action_conditional, max_horizon, models_replies = True, None, False

    def encode(self, *_: Any, **__: Any) -> LastToken:
        """Return nothing that a search would ask for."""
        raise NotImplementedError

    def step(self, state: LastToken, tokens: Tensor) -> LastToken:
        """Append."""
        return LastToken(tokens)

    def predict(self, state: LastToken, with_logits: bool = True) -> Prediction:
        """Return what comes next for certain."""
        following = torch.where(state.token == WORD, EOS, WORD)
        logits = torch.full((len(state), 5), -torch.inf).double().scatter(1, following[:, None], 0.0)
        nothing = torch.zeros(len(state)).double()
        return Prediction(logits, nothing, nothing, torch.where(state.token == HEADS, 0.4, nothing))


@dataclass(frozen=True)
class Row(StateTable):
    """Whose conversation it is."""

    number: Int[Tensor, " state"]


class Scripted:
    """Answers the turns of each row by its script, one after another: reply, what is paid, whether it ends."""

    max_reply = 2

    def __init__(self, scripts: Sequence[Sequence[tuple[list[int], float, bool]]]) -> None:
        self._scripts = [iter(script) for script in scripts]

    def begin(self, turns: Turns, rows: Tensor) -> Row:
        """Return nothing that a search would ask for."""
        raise NotImplementedError

    def turns_left(self, heard: Row) -> Tensor:
        """Return as many as one likes."""
        return torch.full((len(heard),), 99)

    def answer(self, heard: Row, said: Tensor, generator: torch.Generator) -> tuple[Row, Answered]:
        """Return the next line of each row's script."""
        told = [next(self._scripts[row]) for row in heard.number.tolist()]
        replies = torch.tensor([reply + [NOTHING] * (2 - len(reply)) for reply, _, _ in told])
        paid = torch.tensor([reward for _, reward, _ in told]).double()
        return heard, Answered(replies, paid, torch.tensor([ended for _, _, ended in told]))


# Heads goes on, tails pays .5 and ends; behind heads the second turn pays 1, ends, and is not answered.
H, T, E = ([HEADS], 0.0, False), ([TAILS, TAILS], 0.5, True), (list[int](), 1.0, True)


def searched() -> SearchedPolicy:
    """Six simulations, gamma .5. Row 0 hears H, T, H, H and behind it E, T; row 1 hears T five times.

    ::

        simulation   walk of row 0            paid and worth, from the last edge up
        1            word                     0
        2            word eos H               .5 .4 = .2, .1
        3            word eos T               .5, .25
        4            word eos H word          0, 0, 0
        5            word eos H word eos E    1, .5, .25, .125
        6            word eos T               .5, .25
    """
    source = Scripted([[H, T, H, H, E, T], [T] * 5])
    generator = torch.Generator().manual_seed(0)
    dynamics = ConversationDynamics(OneWord(), source, eos_id=EOS, max_turn=None, generator=generator)
    many = torch.full((2,), 99)
    start = LastToken(torch.tensor([HEADS, HEADS]))
    state = dynamics.begin(start, Row(torch.arange(2)), torch.full((2, 4), NOTHING), many, many)
    return plan("puct", dynamics, state, acting_policy(1.0), SearchConfig(6, width=1, gamma=0.5))


def rounded(nodes: tuple[TreeNode, ...]) -> tuple[TreeNode, ...]:
    """The tree with worths to twelve digits."""

    def behind(node: TreeNode) -> tuple[DrawnReply, ...]:
        return tuple(replace(reply, children=rounded(reply.children)) for reply in node.replies)

    return tuple(
        replace(node, q=round(node.q, 12), children=rounded(node.children), replies=behind(node)) for node in nodes
    )


def test_replies_stand_under_the_token_they_answer_by_how_often_they_were_drawn() -> None:
    (root,) = rounded(tree_of(searched(), 0))
    unanswered = DrawnReply((), 1, is_end=True, is_chosen=True, children=())
    second = TreeNode(EOS, 1, 1.0, 1.0, is_end=True, is_chosen=True, children=(), replies=(unanswered,))
    again = TreeNode(WORD, 2, 1.0, 0.25, is_end=False, is_chosen=True, children=(second,))
    heads = DrawnReply((HEADS,), 3, is_end=False, is_chosen=True, children=(again,))
    tails = DrawnReply((TAILS, TAILS), 2, is_end=True, is_chosen=False, children=())
    # (.2 + .5 + 0 + .25 + .5) / 5, the mean over what was drawn
    first = TreeNode(EOS, 5, 1.0, 0.29, is_end=False, is_chosen=True, children=(), replies=(heads, tails))
    assert root.q == pytest.approx((0 + 0.1 + 0.25 + 0 + 0.125 + 0.25) / 6, abs=1e-11)
    assert replace(root, q=0.0) == TreeNode(WORD, 6, 1.0, 0.0, is_end=False, is_chosen=True, children=(first,))


def test_every_row_has_its_own_replies() -> None:
    (root,) = rounded(tree_of(searched(), 1))
    tails = DrawnReply((TAILS, TAILS), 5, is_end=True, is_chosen=True, children=())
    (first,) = root.children
    assert first == TreeNode(EOS, 5, 1.0, 0.5, is_end=True, is_chosen=True, children=(), replies=(tails,))


def test_the_line_goes_on_behind_the_reply_that_was_drawn_most_often() -> None:
    """The last one drawn is tails, behind which there is nothing."""
    found = searched()
    assert found.tree.principal_variation().tolist() == [[WORD, EOS, WORD, EOS], [WORD, EOS, -1, -1]]
    # What a plan writes ends with the turn: what is said next hangs on the reply that is really heard.
    assert line_of(tree_of(found, 0), 9) == [WORD, EOS]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ([T, H], [((TAILS, TAILS), 1, True), ((HEADS,), 1, False)]),
        ([T, H, H], [((HEADS,), 2, True), ((TAILS, TAILS), 1, False)]),
    ],
    ids=["of equals the first", "of others the most drawn"],
)
def test_replies_are_in_the_order_of_their_draws(script: list[Any], expected: list[Any]) -> None:
    """The first simulation reads the word alone, and every other one draws a reply."""
    source = Scripted([script])
    generator = torch.Generator().manual_seed(0)
    dynamics = ConversationDynamics(OneWord(), source, eos_id=EOS, max_turn=None, generator=generator)
    many = torch.full((1,), 99)
    start = LastToken(torch.tensor([HEADS]))
    state = dynamics.begin(start, Row(torch.arange(1)), torch.full((1, 4), NOTHING), many, many)
    found = plan("puct", dynamics, state, acting_policy(1.0), SearchConfig(1 + len(script), width=1))
    (root,) = tree_of(found, 0)
    (first,) = root.children
    assert [(reply.tokens, reply.visits, reply.is_chosen) for reply in first.replies] == expected
    # Node 2 was tails, behind which nothing is, and node 3 heads.
    drawn = found.tree.most_drawn(torch.tensor([1]), torch.tensor([0]))
    assert drawn.tolist() == [2 if expected[0][0] == (TAILS, TAILS) else 3]
    assert found.tree.most_drawn(torch.tensor([2]), torch.tensor([0])).tolist() == [-1]
