"""Conversations read from rollouts, laid out by hand."""

from collections.abc import Callable

import pytest
import torch

from worldmtp.agents.rollout import Rollout, trimmed
from worldmtp.agents.turns import cut_replies, turns_of
from worldmtp.dynamics.turns import NOTHING

MakeRollout = Callable[..., Rollout]
EOS, N = 1, NOTHING


def test_turns_by_hand(hand_rollout: MakeRollout) -> None:
    """EOS or the second token ends a turn; the world writes 7 8, then nothing, then 9.

    The first episode says "3 EOS", "4 5", "EOS" and is ended; the second says "3 4" and is cut off in its next turn.
    """
    rollout = hand_rollout(
        [
            {
                "prompt": [2, 2],
                "actions": [3, EOS, 4, 5, EOS],
                "wrote": [[], [7, 8], [], [], [9]],
                "rewards": [0.1, 0.2, 0.0, 0.3, 0.5],
                "end": "terminated",
            },
            {
                "prompt": [2],
                "actions": [3, 4, 6],
                "wrote": [[], [7], []],
                "rewards": [0.0, 0.4, 0.0],
                "end": "truncated",
            },
        ],
        steps=6,
        length=12,
    )
    turns = turns_of(rollout, EOS, max_turn=2, max_new=10)
    assert turns.opening.tolist() == [[2, 2], [2, N]]
    assert turns.mask.tolist() == [[True, True, True], [True, False, False]]
    assert turns.said.tolist() == [[[3, EOS], [4, 5], [EOS, N]], [[3, 4], [N, N], [N, N]]]
    assert turns.replies.tolist() == [[[7, 8], [N, N], [9, N]], [[7, N], [N, N], [N, N]]]
    torch.testing.assert_close(turns.rewards, torch.tensor([[0.3, 0.3, 0.5], [0.4, 0.0, 0.0]]))
    assert turns.ended.tolist() == [[False, False, True], [False, False, False]]
    torch.testing.assert_close(turns.returns, torch.tensor([1.1, 0.4]))


@pytest.mark.parametrize(
    ("max_new", "end", "num_turns"), [(4, "truncated", 1), (5, "truncated", 2), (4, "terminated", 2)]
)
def test_a_reply_that_may_have_been_cut_teaches_nothing(
    max_new: int, end: str, num_turns: int, hand_rollout: MakeRollout
) -> None:
    """Four tokens behind a prompt: full with a budget of four, where a truncated one may have lost its reply's end.

    The row is wider, since other prompts are longer than this one.
    """
    row = {"prompt": [2], "actions": [EOS, EOS], "wrote": [[7], [8]], "rewards": [0.0, 0.0], "end": end}
    rollout = hand_rollout([row], steps=2, length=9)
    turns = turns_of(rollout, EOS, None, max_new)
    assert cut_replies(rollout, EOS, None, max_new).tolist() == [num_turns == 1]
    assert int(turns.num_turns) == num_turns
    assert turns.ended[0].tolist() == [False, end == "terminated"][:num_turns]  # a cut is not the world's end


def test_an_episode_without_a_whole_turn_has_none(hand_rollout: MakeRollout) -> None:
    row = {"prompt": [2], "actions": [3, 4], "rewards": [0.0, 0.0], "end": "truncated"}
    rollout = hand_rollout([row], steps=4, length=8)
    turns = turns_of(rollout, EOS, None, 7)
    assert turns.num_turns.tolist() == [0]
    assert cut_replies(rollout, EOS, None, 2).tolist() == [False], "the policy's turn was cut, and no reply"
    assert turns.returns.tolist() == [0.0]


def test_trimming_takes_away_padding_and_nothing_else(hand_rollout: MakeRollout) -> None:
    rows = [
        {"prompt": [2, 2], "actions": [3, EOS], "wrote": [[7], []], "rewards": [0.0, 1.0], "end": "terminated"},
        {"prompt": [2], "actions": [EOS], "rewards": [0.5], "end": "truncated"},
    ]
    expected, found = hand_rollout(rows, steps=2, length=5), trimmed(hand_rollout(rows, steps=6, length=12))
    for name, values in vars(expected).items():
        assert torch.equal(getattr(found, name), values), name
