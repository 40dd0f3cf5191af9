"""The pure functions, worked by hand. Ids: pad 0, EOS 1, a 2, b 3, = 4."""

import numpy as np

from worldmtp.envs import core


def state(tokens, length, prompt_length, done):
    return core.TextState(np.array(tokens), np.array(length), np.array(prompt_length), np.array(done))


def test_a_row_is_prompt_then_response_then_padding():
    begun = core.initial(np.array([[2, 4, 0], [2, 3, 4]]), np.array([2, 3]), max_new=2, pad_id=0)
    assert begun.tokens.tolist() == [[2, 4, 0, 0, 0], [2, 3, 4, 0, 0]]
    after = core.transition(begun, np.array([3, 2]))
    assert after.tokens.tolist() == [[2, 4, 3, 0, 0], [2, 3, 4, 2, 0]]
    assert after.length.tolist() == [3, 4]
    assert begun.tokens.tolist() == [[2, 4, 0, 0, 0], [2, 3, 4, 0, 0]]  # pure


def test_terminated_by_eos_truncated_by_budget_never_both():
    # rows: EOS early; EOS on the last token of the budget of 2; another token there; another token early; already done
    before = state(
        [[2, 0, 0], [2, 3, 0], [2, 3, 0], [2, 0, 0], [2, 3, 1]], [1, 2, 2, 1, 3], [1] * 5, [False] * 4 + [True]
    )
    actions = np.array([1, 1, 3, 3, 1])
    after = core.transition(before, actions)
    terminated, truncated = core.terminal(before, after, actions, eos_id=1, max_new=2)
    assert terminated.tolist() == [True, True, False, False, False]
    assert truncated.tolist() == [False, False, True, False, False]
    assert after.tokens[4].tolist() == [2, 3, 1]  # done rows take no tokens
    assert after.length.tolist() == [2, 3, 3, 2, 3]


def test_replaced_rows_are_begun_anew_and_the_others_kept():
    old = state([[2, 2, 1], [3, 3, 0]], [3, 2], [1, 1], [True, False])
    fresh = core.initial(np.array([[3]]), np.array([1]), max_new=2, pad_id=0)
    new = core.replace_rows(old, np.array([0]), fresh)
    assert new.tokens.tolist() == [[3, 0, 0], [3, 3, 0]]
    assert (new.length.tolist(), new.done.tolist()) == ([1, 2], [False, False])
    assert old.done.tolist() == [True, False]


def test_an_observation_is_a_copy():
    old = state([[2, 0]], [1], [1], [False])
    seen = core.observation(old)
    seen["tokens"][:] = 9
    seen["length"][:] = 9
    assert (old.tokens.tolist(), old.length.tolist()) == ([[2, 0]], [1])
    assert (seen["tokens"].shape, seen["length"].shape, seen["prompt_length"].shape) == ((1, 2), (1, 1), (1, 1))
