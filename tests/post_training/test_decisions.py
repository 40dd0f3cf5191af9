"""Decisions among the tokens of completions, and advantages over them: worked by hand."""

import pytest
import torch

from worldmtp.post_training.decisions import Decisions, padded_token_rewards, token_plan

# Row 0: the policy writes two tokens, a world replies two, the policy writes one; row 1: one token, then padding.
DECISIONS = Decisions(torch.tensor([[1, 1, 0, 0, 1], [1, 0, 0, 0, 0]], dtype=torch.bool), length=torch.tensor([5, 1]))
VALUES = torch.tensor([[0.5, 0.25, 9.0, 9.0, 1.0, 2.0], [0.5, 3.0, 9.0, 9.0, 9.0, 9.0]])


def test_steps_are_the_decisions_moved_to_the_left():
    steps = torch.tensor([[1.0, 2.0, 3.0, 0.0, 0.0], [4.0, 0.0, 0.0, 0.0, 0.0]])
    tokens = torch.tensor([[1.0, 2.0, 0.0, 0.0, 3.0], [4.0, 0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(DECISIONS.to_tokens(steps), tokens)
    assert DECISIONS.last_step.nonzero().tolist() == [[0, 2], [1, 0]]


def test_values_are_of_the_states_decisions_are_taken_in_and_of_the_whole_text():
    expected = torch.tensor([[0.5, 0.25, 1.0, 2.0, 2.0, 2.0], [0.5, 3.0, 3.0, 3.0, 3.0, 3.0]])
    assert torch.equal(DECISIONS.step_values(VALUES), expected)


def test_a_reward_on_a_reply_was_earned_by_the_decision_before_it():
    paid = torch.tensor([[0.0, 1.0, 0.5, 0.25, 2.0], [3.0, 0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[0.0, 1.75, 2.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(DECISIONS.step_rewards(paid), expected)


def test_a_reward_before_the_first_decision_is_refused():
    late = Decisions(torch.tensor([[False, True]]), torch.tensor([2]))
    with pytest.raises(ValueError, match=r"completion 0 pay 0\.5 at token 0, before the policy's first decision"):
        late.step_rewards(torch.tensor([[0.5, 1.0]]))


@pytest.mark.parametrize(("truncated", "bootstraps"), [(False, False), (True, False), (True, True)])
def test_gae_skips_what_a_world_replied(truncated, bootstraps):
    """Gamma 1/2, lambda 1/2, rewards 0, 0, 1 of the decisions: delta_2 = 1 - 1 (+ 2/2 with a bootstrap)."""
    rewards = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0, 0.0]])
    cut = torch.tensor([truncated, truncated])
    plan = token_plan(DECISIONS, rewards, VALUES, cut, gamma=0.5, gae_lambda=0.5, bootstrap_truncated=bootstraps)
    delta_2 = 1 - 1 + 0.5 * 2 * bootstraps
    delta_1 = 0.5 * 1 - 0.25  # the next state is the one behind the reply
    delta_0 = 0.5 * 0.25 - 0.5
    a_2, a_1 = delta_2, delta_1 + 0.25 * delta_2
    a_0 = delta_0 + 0.25 * a_1
    of_row_1 = 2 - 0.5 + 0.5 * 3 * bootstraps
    expected = torch.tensor([[a_0, a_1, 0.0, 0.0, a_2], [of_row_1, 0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(plan.advantages, expected)
    r_2 = 1 + 0.5 * 2 * bootstraps
    targets = torch.tensor([[r_2 / 4, r_2 / 2, 0.0, 0.0, r_2], [2 + 0.5 * 3 * bootstraps, 0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(plan.value_targets, targets)


def test_rows_without_a_decision_have_no_advantage():
    none = Decisions(torch.zeros((1, 2), dtype=torch.bool), torch.tensor([2]))
    plan = token_plan(none, torch.zeros(1, 2), torch.ones(1, 3), torch.tensor([False]), 1.0, 1.0, False)
    assert torch.equal(plan.advantages, torch.zeros(1, 2))


def test_token_rewards_of_another_length_or_not_finite_are_refused():
    like = torch.zeros(2, 3)
    rows = [{"paid": [1.0, 2.0]}, {"paid": [3.0]}]
    assert padded_token_rewards(rows, "paid", [2, 1], like).tolist() == [[1, 2, 0], [3, 0, 0]]
    with pytest.raises(ValueError, match=r"paid of completion 1 has the shape \(1,\), expected \(2,\)"):
        padded_token_rewards(rows, "paid", [2, 2], like)
    with pytest.raises(ValueError, match="paid of completion 0 is not finite"):
        padded_token_rewards([{"paid": [float("nan")]}], "paid", [1], like)
