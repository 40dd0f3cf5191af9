"""Episodes of a rollout, as evaluations between the first and the last tell them."""

import torch

from worldmtp.agents.rollout import Rollout
from worldmtp.training.evaluation import conversations, rewards_in_place

TEXTS = ("<pad>", "<eos>", "5", "7", "up", "Guess ", "!")


def two_turns() -> Rollout:
    """Guess ! | 5 <eos> -> up | 7 <eos> -> !, paid .25 and .5; and a row of one turn, paid 0."""
    return Rollout(
        input_ids=torch.tensor([[5, 6, 2, 1, 4, 3, 1, 6], [5, 2, 1, 4, 0, 0, 0, 0]]),
        attention_mask=torch.tensor([[1] * 8, [1] * 4 + [0] * 4]).bool(),
        prompt_length=torch.tensor([2, 1]),
        action_index=torch.tensor([[2, 3, 5, 6], [1, 2, 0, 0]]),
        actions=torch.tensor([[2, 1, 3, 1], [2, 1, 0, 0]]),
        step_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool(),
        logprobs=torch.zeros(2, 4),
        rewards=torch.tensor([[0.0, 0.25, 0.0, 0.5], [0.0, 0.0, 9.0, 9.0]]),
        terminated=torch.tensor([[0, 0, 0, 1], [0, 1, 0, 0]]).bool(),
        truncated=torch.zeros(2, 4, dtype=torch.bool),
        group=torch.arange(2),
        exact=torch.tensor([True, False]),
    )


def test_rewards_stand_at_the_tokens_that_earned_them() -> None:
    assert rewards_in_place(two_turns()).tolist() == [[0, 0, 0, 0.25, 0, 0, 0.5, 0], [0.0] * 8]


def test_a_rollout_is_told_turn_by_turn() -> None:
    assert conversations(two_turns(), TEXTS).splitlines() == [
        "**Episode 0**: return 0.75 in 2 turns, exact",
        "",
        "```",
        "world   Guess !",
        "policy  5<eos>   +0.25",
        "world   up",
        "policy  7<eos>   +0.5",
        "world   !",
        "```",
        "",
        "**Episode 1**: return 0 in 1 turn",
        "",
        "```",
        "world   Guess",
        "policy  5<eos>  0",
        "world   up",
        "```",
    ]
    assert conversations(two_turns(), TEXTS, num_samples=1).count("**Episode") == 1
