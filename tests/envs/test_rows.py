"""The arrays of rows, worked by hand, and what a step touches of them. Ids: pad 0, EOS 1, a 2, b 3, = 4."""

import numpy as np
import pytest

from worldmtp.envs import CharTokenizer, Example, Score, TextGenVectorEnv, WorldTask
from worldmtp.envs.rewards import TurnRewards
from worldmtp.envs.rows import TextRows


def state(tokens, length, prompt_length, done):
    rows = TextRows(len(tokens), len(tokens[0]), 0)
    rows.tokens[:], rows.length[:], rows.prompt_length[:], rows.done[:] = tokens, length, prompt_length, done
    return rows


def test_a_row_is_prompt_then_response_then_padding():
    rows = TextRows(2, 5, 0)
    rows.begin(np.arange(2), np.array([[2, 4, 0], [2, 3, 4]]), np.array([2, 3]))
    assert rows.tokens.tolist() == [[2, 4, 0, 0, 0], [2, 3, 4, 0, 0]]
    rows.append(np.arange(2), np.array([3, 2]))
    assert rows.tokens.tolist() == [[2, 4, 3, 0, 0], [2, 3, 4, 2, 0]]
    assert rows.length.tolist() == [3, 4]
    assert rows.response(0).tolist() == [3]
    rows.remove_last(np.array([1]))
    assert rows.tokens.tolist() == [[2, 4, 3, 0, 0], [2, 3, 4, 0, 0]]
    assert rows.length.tolist() == [3, 3]


def test_terminated_by_eos_truncated_by_budget_never_both():
    # rows: EOS early; EOS on the last token of the budget of 2; another token there; another token early; already done
    rows = state(
        [[2, 0, 0], [2, 3, 0], [2, 3, 0], [2, 0, 0], [2, 3, 1]], [1, 2, 2, 1, 3], [1] * 5, [False] * 4 + [True]
    )
    actions, live = np.array([1, 1, 3, 3, 1]), ~rows.done
    rows.append(np.flatnonzero(live), actions[live])
    terminated, truncated = rows.ends(live, actions, eos_id=1, max_new=2)
    assert terminated.tolist() == [True, True, False, False, False]
    assert truncated.tolist() == [False, False, True, False, False]
    assert rows.tokens[4].tolist() == [2, 3, 1]  # done rows take no tokens
    assert rows.length.tolist() == [2, 3, 3, 2, 3]


def test_rows_are_begun_anew_and_the_others_kept():
    rows = state([[2, 2, 1], [3, 3, 0]], [3, 2], [1, 1], [True, False])
    rows.begin(np.array([0]), np.array([[3]]), np.array([1]))
    assert rows.tokens.tolist() == [[3, 0, 0], [3, 3, 0]]
    assert (rows.length.tolist(), rows.done.tolist()) == ([1, 2], [False, False])


def test_an_observation_is_a_copy_or_cannot_be_written():
    rows = state([[2, 0]], [1], [1], [False])
    seen = rows.observation()
    seen["tokens"][:] = 9
    seen["length"][:] = 9
    assert (rows.tokens.tolist(), rows.length.tolist()) == ([[2, 0]], [1])
    assert (seen["tokens"].shape, seen["length"].shape, seen["prompt_length"].shape) == ((1, 2), (1, 1), (1, 1))
    view = rows.observation(copy=False)
    with pytest.raises(ValueError, match="read-only"):
        view["tokens"][:] = 9
    view["length"][:] = 9
    rows.append(np.array([0]), np.array([1]))
    assert (view["tokens"].tolist(), rows.length.tolist()) == ([[2, 1]], [2])


class Counted(np.ndarray):
    """Tokens that count the elements which are read, written and copied, whole or by index."""

    num_elements = 0

    def count(self, array):
        Counted.num_elements += np.asarray(array).size

    def __getitem__(self, key):
        found = super().__getitem__(key)
        if not (isinstance(found, np.ndarray) and np.shares_memory(np.asarray(found), np.asarray(self))):
            self.count(found)
        return found

    def __setitem__(self, key, value):
        self.count(np.asarray(self)[key])
        super().__setitem__(key, value)

    def copy(self, order="C"):
        self.count(self)
        return super().copy(order)

    def tolist(self):
        self.count(self)
        return super().tolist()

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        for value in inputs:
            self.count(value)
        plain = [np.asarray(value) if isinstance(value, Counted) else value for value in inputs]
        return getattr(ufunc, method)(*plain, **kwargs)

    def __array_function__(self, function, types, arguments, kwargs):
        raise AssertionError(f"{function} is called on whole rows")


class Echo:
    """A word of one letter."""

    def sample(self, rng, split):
        return Example("ab"[rng.integers(2)] + "=")

    def score(self, example, text, ids):
        return Score(0.0)


class Silent:
    """A world that says one letter a turn, and never ends."""

    def reset(self, seed):
        return "=", {}

    def step(self, text):
        return "b", 0.0, False, False, {}


def counted_steps(max_new, **changes):
    """Elements touched by 32 steps of 8 rows that do not end, what is kept of conversations included."""
    arguments = {"task": Echo(), "max_prompt": 4, "pool_size": 8, "heldout_fraction": 0.0} | changes
    env = TextGenVectorEnv(8, copy=False, tokenizer=CharTokenizer("ab="), max_new=max_new, **arguments)
    env.reset(seed=0)
    env._rows.tokens = env._rows.tokens.view(Counted)
    if isinstance(env._rewards, TurnRewards):
        env._rewards.acted = env._rewards.acted.view(Counted)
    Counted.num_elements = 0
    for step in range(32):
        env.step(np.full(8, 1 if changes and step % 4 == 3 else 2))
    assert not env.done.any()
    return Counted.num_elements


def test_a_step_touches_one_element_a_row_whatever_the_length():
    """32 steps of 8 rows write 32 * 8 elements, and nothing is copied, be there room for 64 tokens or 4096."""
    assert counted_steps(64) == counted_steps(4096) == 32 * 8


def test_a_turn_touches_what_was_said_whatever_the_length():
    """Each step writes a token and marks it as the policy's: 2 elements. Every fourth ends a turn.

    Of that turn's 4 tokens, all are read once, and one token is written in reply.
    """
    task = {"task": WorldTask(Silent)}
    expected = 8 * (32 * 2 + 8 * (4 + 1))
    assert counted_steps(64, **task) == counted_steps(4096, **task) == expected
