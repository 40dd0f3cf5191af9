"""What imagined answers are worth: scored by hand, counted apart, no episode touched, and where it is refused.

Ids: pad 0, EOS 1, a 2, b 3, = 4. An echo is worth 1, as many letters 1/2; answers have up to 4 tokens.
"""

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmtp.envs import CharTokenizer, Example, Score, TextGenVectorEnv
from worldmtp.envs.task import Progress
from worldmtp.envs.text_env import TextVectorView
from worldmtp.envs.worlds.task import WorldTask

ASKED = {"prompts": [Example("ab=", "ab"), Example("b=", "b")]}


def ids(*tokens):
    return np.array(tokens, dtype=np.int64)


def untouched(env):
    """A snapshot without what counts imagined answers."""
    state = env.state()
    state.pop("scorer_imagined")
    return state


@pytest.fixture
def rows(make_vector):
    env = make_vector(2, "disabled")
    env.reset(seed=0, options=ASKED)
    return env


def test_worth_by_hand(rows):
    """Row 0 asks for "ab", row 1 for "b": right, of its length, too short, another row's, and out of budget."""
    answers = [ids(2, 3, 1), ids(3, 3, 1), ids(2, 1), ids(3, 1), ids(2, 3, 1), ids(3, 3, 3, 3)]
    worth = rows.worth(np.array([0, 0, 0, 1, 1, 1]), answers)
    assert worth.dtype == np.float64
    assert worth.tolist() == [1.0, 0.5, 0.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(("truncation_score", "expected"), [("score", 0.5), ("zero", 0.0)])
def test_an_answer_that_ran_out_of_budget_is_paid_as_a_real_one(make_vector, truncation_score, expected):
    env = make_vector(1, "disabled", truncation_score=truncation_score, max_prompt=5)
    env.reset(seed=0, options={"prompts": [Example("abab=")]})
    assert env.worth(np.array([0]), [ids(3, 3, 3, 3)]).tolist() == [expected]
    for _ in range(4):
        *_, infos = env.step(ids(3))
    assert infos["final_info"]["score"].tolist() == [expected]


def test_episodes_and_their_counters_stay_as_they_were(rows):
    rows.step(ids(2, 3))
    before = untouched(rows)
    rows.worth(np.array([0, 1]), [ids(2, 3, 1), ids(2, 1)])
    assert untouched(rows) == before
    _, rewards, terminated, _, _ = rows.step(ids(3, 1))
    assert (rewards.tolist(), terminated.tolist()) == ([0.0, 1.0], [False, True])


def test_calls_are_counted_apart_and_components_are_those_of_real_answers(rows):
    rows.step(ids(1, 3))
    rows.worth(np.array([0, 1]), [ids(2, 3, 1), ids(2, 1)])
    assert (rows.scorer.counters.scored, rows.scorer.imagined.scored) == (1, 2)
    assert rows.scorer.imagined.seconds > 0
    assert rows.scorer.take_components() == {"length": 0.0}  # row 0 said nothing


def test_equal_answers_to_one_question_are_scored_once(make_vector):
    """Rows 0 and 1 share their question; row 2 asks it by another object, which may differ in what it hides."""
    env = make_vector(4, "disabled", group_size=2)
    env.reset(seed=0, options={"prompts": [Example("ab=", "ab"), Example("ab=", "ab", hidden="x")]})
    worth = env.worth(np.array([0, 1, 1, 2, 3]), [ids(2, 3, 1), ids(2, 3, 1), ids(3, 3, 1), ids(2, 3, 1), ids(2, 3, 1)])
    assert worth.tolist() == [1.0, 1.0, 0.5, 1.0, 1.0]
    assert env.scorer.imagined.scored == 3


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.lists(st.sampled_from([0, 2, 3, 4]), max_size=3)), max_size=8))
def test_the_worth_of_many_is_that_of_each_alone(asked):
    env = TextGenVectorEnv(
        2, task=Counted(), tokenizer=CharTokenizer("ab="), max_prompt=4, max_new=4, pool_size=8, heldout_fraction=0.5
    )
    env.reset(seed=0, options=ASKED)
    rows, answers = np.array([row for row, _ in asked], dtype=np.int64), [ids(*said, 1) for _, said in asked]
    together = env.worth(rows, answers)
    assert env.scorer.imagined.scored == len({(row, tuple(said)) for row, said in asked})
    alone = [env.worth(rows[[at]], [answer])[0] for at, answer in enumerate(answers)]
    assert together.tolist() == alone


class Counted:
    """Worth an eighth a letter "a", and another number for either question."""

    def sample(self, rng, split):
        return Example("".join("ab"[index] for index in rng.integers(2, size=3)) + "=", answer="a")

    def score(self, example, text, ids):
        return Score((text.count("a") + 4 * (example.prompt == "b=")) / 8)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (ids(), "is not over"),
        (ids(2, 3), "is not over: an answer has up to 4 tokens and ends with its only EOS, 1"),
        (ids(2, 1, 3, 1), "is not over"),
        (ids(2, 1, 3, 3), "is not over"),
        (ids(2, 2, 2, 2, 1), "is not over"),
        (ids(2, 5, 1), r"token outside the vocabulary 0\.\.4"),
        (ids(-1, 1), r"token outside the vocabulary 0\.\.4"),
    ],
)
def test_what_is_no_answer_is_refused(rows, answer, message):
    with pytest.raises(ValueError, match=message):
        rows.worth(np.array([0]), [answer])
    assert rows.scorer.imagined.scored == 0


def test_before_the_first_reset_there_is_no_question(make_vector):
    with pytest.raises(ResetNeeded, match="rows without a question"):
        make_vector(1, "disabled").worth(np.array([0]), [ids(1)])


class Parrot:
    def reset(self, seed):
        return "ab"[seed % 2] + "=", {}

    def step(self, text):
        return text, 1.0, True, False, {}


class Dense(Counted):
    probe_bound = 1.0

    def progress(self, example, text, ids):
        return Progress(0.0)


class Paid(Counted):
    paid_scorer = True


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        (WorldTask(Parrot, num_seeds=64), {}, "WorldTask has worlds that reply.*imagination=episodes"),
        (Dense(), {}, "Dense rewards tokens as they come"),
        (Paid(), {}, "scores of Paid cost money"),
        (Counted(), {"paid_scorer": True}, "scores of Counted cost money"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_where_it_is_refused(task, changes, message, wrapped):
    rows = TextGenVectorEnv(
        1,
        task=task,
        tokenizer=CharTokenizer("ab="),
        max_prompt=4,
        max_new=4,
        pool_size=8,
        heldout_fraction=0.5,
        **changes,
    )
    env = TextVectorView(rows) if wrapped else rows
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.worth(np.array([0]), [ids(2, 1)])
    assert env.scorer.imagined.scored == 0


@pytest.mark.filterwarnings("ignore:scoring:RuntimeWarning")
def test_a_scorer_that_fails_pays_nothing_and_is_counted_apart(make_vector):
    class Fails(Counted):
        def score(self, example, text, ids):
            raise RuntimeError("no score today")

    env = make_vector(1, "disabled", task=Fails(), max_prompt=4)
    env.reset(seed=0)
    assert env.worth(np.array([0]), [ids(2, 1)]).tolist() == [0.0]
    assert (env.scorer.counters.errors, env.scorer.imagined.errors) == (0, 1)


def test_a_snapshot_goes_on_counting(rows, make_vector):
    rows.worth(np.array([0]), [ids(2, 1)])
    other = make_vector(2, "disabled")
    other.load_state(rows.state())
    other.worth(np.array([0]), [ids(3, 1)])
    assert other.scorer.imagined.scored == 2
    older = rows.state()
    older.pop("scorer_imagined")
    other.load_state(older)
    assert other.scorer.imagined.scored == 0
