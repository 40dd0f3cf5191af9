"""Dense rewards: each token earns the difference it makes, and they add up to the score."""

import numpy as np
import pytest

from worldmtp.envs import CharTokenizer, Example, Score, TextGenEnv, check_text_env, check_vector_env
from worldmtp.envs.make import make_rows
from worldmtp.envs.task import Progress


class Alternate:
    """Write "ab" "ab" ...: a quarter for each right letter of four, over at the first wrong one or when complete."""

    def sample(self, rng, split):
        return Example(prompt="".join("ab"[index] for index in rng.integers(2, size=8)) + "=", answer="abab")

    def progress(self, example, text, ids):
        num_right = next((place for place, letter in enumerate(text) if letter != "abab"[place : place + 1]), len(text))
        return Progress(num_right / 4, ended=num_right < len(text) or num_right == 4)

    def score(self, example, text, ids):
        value = self.progress(example, text, ids).value if len(text) <= 4 else 0.0
        return Score(value, exact=text == "abab")

    probe_bound = 0.5


class Unanswered(Alternate):
    """Has no answer to show, so that a budget may be too small for it."""

    def sample(self, rng, split):
        return Example(prompt=super().sample(rng, split).prompt)


class Forgives(Alternate):
    """The score is not the last progress: the last token makes it up."""

    def score(self, example, text, ids):
        return Score(1.0 if text == "abab" else 0.125, exact=text == "abab")


class Breaks(Alternate):
    def progress(self, example, text, ids):
        if text == "ab":
            raise RuntimeError("no progress can be told")
        return super().progress(example, text, ids)


def make(task, num_envs, mode="disabled", **changes):
    kwargs = {"task": task, "tokenizer": CharTokenizer("ab="), "max_prompt": 9, "max_new": 6, "pool_size": 16}
    return make_rows(num_envs, autoreset_mode=mode, **(kwargs | changes))


def play(envs, columns):
    envs.reset(seed=0)
    return [envs.step(np.array(column)) for column in columns]


def test_an_episode_by_hand():
    # row 0: a b a b is complete; row 1: a a is wrong; row 2: a EOS gives up
    steps = play(make(Alternate(), 3), [[2, 2, 2], [3, 2, 1], [2, 2, 2], [3, 2, 2]])
    assert [step[1].tolist() for step in steps] == [[0.25] * 3, [0.25, 0, 0], [0.25, 0, 0], [0.25, 0, 0]]
    assert [step[2].tolist() for step in steps] == [[False] * 3, [False, True, True], [False] * 3, [True, False, False]]
    assert not any(step[3].any() for step in steps)
    assert steps[1][4]["final_info"]["score"].tolist() == [0, 0.25, 0.25]
    assert (steps[3][4]["final_info"]["score"][0], steps[3][4]["final_info"]["exact"][0]) == (1.0, True)


def test_the_last_token_makes_up_for_a_score_that_is_not_the_progress():
    steps = play(make(Forgives(), 2), [[2, 2], [2, 3], [1, 1]])
    # row 0: 0.25, then the wrong letter, at which the score is 0.125; row 1: 0.5, then EOS, and the same score
    assert [step[1].tolist() for step in steps] == [[0.25, 0.25], [-0.125, 0.25], [0, -0.375]]


def test_running_out_of_budget_takes_back_what_was_paid_where_it_is_worth_nothing():
    steps = play(make(Unanswered(), 1, max_new=3, truncation_score="zero"), [[2], [3], [2]])
    assert [step[1][0] for step in steps] == [0.25, 0.25, -0.5]
    assert steps[2][3].tolist() == [True]
    assert steps[2][4]["final_info"]["reason"][0] == "no_eos"


def test_progress_that_raises_is_counted_and_earns_nothing_until_it_is_told_again():
    envs = make(Breaks(), 1)
    with pytest.warns(RuntimeWarning, match="scoring 'ab' for the prompt .* failed and pays 0"):
        steps = play(envs, [[2], [3], [2], [3]])
    assert [step[1][0] for step in steps] == [0.25, 0.0, 0.5, 0.25]
    assert (envs.scorer.counters.errors, envs.scorer.counters.scored) == (1, 5)


def test_the_checkers_pass():
    check_text_env(TextGenEnv(task=Alternate(), tokenizer="char:ab=", max_prompt=9, max_new=6), num_examples=4)
    check_vector_env(lambda n, mode: make(Alternate(), n, mode), num_steps=60)


@pytest.mark.usefixtures("importable")
def test_progress_in_a_process():
    envs = make(Alternate(), 1, timeout_seconds=30.0)
    assert [step[1][0] for step in play(envs, [[2], [3]])] == [0.25, 0.25]
    envs.close()


def test_progress_is_a_finite_number():
    with pytest.raises(ValueError, match=r"Progress\(value=nan\) must be finite"):
        Progress(float("nan"))
