"""Failures of scorers are counted and shown; a scorer that hangs is killed; a run goes on."""

import time
import warnings

import numpy as np
import pytest

from worldmtp.envs import Example, Score, Scorer, scoring_workers
from worldmtp.envs.scoring_workers import ScoringError

NO_IDS = np.zeros(0, dtype=np.int64)
EXAMPLE = Example("a=", "a")

UNRULY = """
import os
import time

from worldmtp.envs import Example, Score


class Unruly:
    def sample(self, rng, split):
        return Example("a=", "a")

    def score(self, example, text, ids):
        if text == "hang":
            while True:
                time.sleep(0.01)
        if text == "die":
            os._exit(3)
        if text == "raise":
            raise ZeroDivisionError("by the task")
        if text == "quit":
            raise SystemExit(0)
        if text == "none":
            return None
        if text == "lambda":
            return lambda: 0.0
        if text == "slow":
            time.sleep(1.0)
        return Score(float(text == example.answer), {"ids": float(len(ids))}, exact=text == example.answer)
"""


@pytest.fixture
def unruly(tmp_path, monkeypatch):
    """A task in a module of its own, which a spawned process can import."""
    (tmp_path / "unruly_task.py").write_text(UNRULY)
    monkeypatch.syspath_prepend(tmp_path)
    import unruly_task

    return unruly_task.Unruly()


def test_text_is_stripped_and_calls_are_counted(unruly):
    scorer = Scorer(unruly)
    assert scorer.score(EXAMPLE, " a\n", np.array([5, 6])) == Score(1.0, {"ids": 2.0}, "ok", True)
    assert [score.value for score in scorer.score_batch([(EXAMPLE, "b", NO_IDS), (EXAMPLE, "a", NO_IDS)])] == [0.0, 1.0]
    assert (scorer.counters.scored, scorer.counters.errors, scorer.counters.timeouts) == (3, 0, 0)
    assert scorer.counters.seconds > 0


def test_errors_pay_nothing_are_counted_and_shown_once(unruly):
    scorer = Scorer(unruly)
    with pytest.warns(
        RuntimeWarning, match=r"scoring 'raise' for the prompt 'a=' failed(.|\n)*ZeroDivisionError: by the task"
    ):
        assert scorer.score(EXAMPLE, "raise", NO_IDS) == Score(0.0, {}, "error", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scorer.score(EXAMPLE, "none", NO_IDS).reason == "error"
        assert scorer.score(EXAMPLE, "a", NO_IDS).exact
    assert (scorer.counters.scored, scorer.counters.errors) == (3, 2)


def test_errors_can_be_raised_and_are_counted_nonetheless(unruly):
    scorer = Scorer(unruly, on_error="raise")
    with pytest.raises(ZeroDivisionError, match="by the task"):
        scorer.score(EXAMPLE, "raise", NO_IDS)
    with pytest.raises(TypeError, match=r"task\.score returned NoneType; expected worldmtp\.envs\.Score"):
        scorer.score(EXAMPLE, "none", NO_IDS)
    assert scorer.counters.errors == 2


def test_a_scorer_that_quits_is_counted_and_ends_nothing(unruly):
    """SystemExit(0) would end the training as if all were well; an interrupt is the user's and passes."""
    scorer = Scorer(unruly)
    with pytest.warns(
        RuntimeWarning, match=r"later failures of this kind, 'exit'(.|\n)*the scorer raised SystemExit\(0\)"
    ):
        assert scorer.score(EXAMPLE, "quit", NO_IDS) == Score(0.0, {}, "error", False)
    with pytest.warns(RuntimeWarning, match="by the task"):  # another kind is shown, too
        assert scorer.score(EXAMPLE, "raise", NO_IDS).reason == "error"
    assert (scorer.counters.scored, scorer.counters.errors) == (2, 2)
    with pytest.raises(ScoringError, match=r"SystemExit\(0\), which would end the program"):
        Scorer(unruly, on_error="raise").score(EXAMPLE, "quit", NO_IDS)
    unruly.score = interrupt
    with pytest.raises(KeyboardInterrupt):
        scorer.score(EXAMPLE, "a", NO_IDS)


def interrupt(example, text, ids):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timeout_seconds": 0.0}, "must be positive"),
        ({"on_error": "log"}, "on_error='log' is unknown; choose from"),
        ({"timeout_seconds": 1.0, "num_scorers": 0}, "num_scorers=0 must be at least 1"),
        ({"num_scorers": 2}, "num_scorers=2 needs timeout_seconds"),
        ({"timeout_seconds": 1.0, "scorer_memory_gib": 0.0}, "scorer_memory_gib=0.0 must be positive"),
    ],
)
def test_impossible_arguments_are_refused(unruly, arguments, message):
    with pytest.raises(ValueError, match=message):
        Scorer(unruly, **arguments)


def test_a_scorer_that_hangs_or_dies_is_replaced(unruly):
    scorer = Scorer(unruly, timeout_seconds=0.5)
    assert scorer.score(EXAMPLE, "a", np.array([5])) == Score(1.0, {"ids": 1.0}, "ok", True)
    (hanging,) = scorer._pool.pids
    start = time.perf_counter()
    with pytest.warns(RuntimeWarning, match=r"no score after 0\.5 s; the scoring process was killed"):
        assert scorer.score(EXAMPLE, "hang", NO_IDS) == Score(0.0, {}, "timeout", False)
    assert time.perf_counter() - start < 5
    assert scorer.score(EXAMPLE, "a", NO_IDS).exact  # by a new process
    assert scorer._pool.pids != [hanging]
    with pytest.warns(RuntimeWarning, match="by the task"):
        assert scorer.score(EXAMPLE, "raise", NO_IDS).reason == "error"
    with pytest.warns(RuntimeWarning, match="the scoring process died without an answer, exit code 3"):
        assert scorer.score(EXAMPLE, "die", NO_IDS).reason == "error"
    counters = scorer.counters
    assert (counters.scored, counters.errors, counters.timeouts) == (5, 2, 1)
    scorer.close()
    scorer.close()


def test_what_the_process_raises_comes_with_its_traceback(unruly):
    scorer = Scorer(unruly, timeout_seconds=5.0, on_error="raise")
    with pytest.raises(ScoringError, match=r"Traceback(.|\n)*ZeroDivisionError: by the task"):
        scorer.score(EXAMPLE, "raise", NO_IDS)
    scorer.close()
    assert scorer._pool.pids == []


def test_a_task_that_cannot_be_sent_is_counted_as_an_error():
    class Local:
        def sample(self, rng, split):
            return EXAMPLE

        def score(self, example, text, ids):
            return Score(1.0)

    scorer = Scorer(Local(), timeout_seconds=1.0)
    with pytest.warns(RuntimeWarning, match="Local"):
        assert scorer.score(EXAMPLE, "a", NO_IDS).reason == "error"


def test_an_env_goes_on_and_pays_nothing(make_vector, unruly):
    envs = make_vector(2, "disabled", task=unruly, heldout_fraction=0.0, pool_size=1, on_error="zero")
    envs.reset(seed=0)
    unruly.score = lambda example, text, ids: 1 / 0
    with pytest.warns(RuntimeWarning, match="division by zero"):
        _, rewards, terminated, _, infos = envs.step(np.array([1, 1]))
    assert rewards.tolist() == [0.0, 0.0]
    assert terminated.all()
    assert infos["final_info"]["reason"].tolist() == ["error", "error"]
    assert envs.scorer.counters.errors == 2
    envs.close()


def test_an_interrupted_batch_leaves_nothing_for_the_next(unruly, monkeypatch):
    """The answers to "slow" and "b" are on their way when the user interrupts; nobody else must be given them."""
    scorer = Scorer(unruly, timeout_seconds=30.0, num_scorers=2)
    assert scorer.score(EXAMPLE, "a", NO_IDS).value == 1.0

    def interrupted(connections, timeout):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scoring_workers, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scorer.score_batch([(EXAMPLE, text, NO_IDS) for text in ("slow", "b")])
    values = [score.value for score in scorer.score_batch([(EXAMPLE, text, NO_IDS) for text in "abab"])]
    assert values == [1.0, 0.0, 1.0, 0.0]
    scorer.close()


def test_a_result_that_does_not_pickle_is_told_with_its_traceback(unruly):
    scorer = Scorer(unruly, timeout_seconds=30.0, on_error="raise")
    with pytest.raises(ScoringError, match=r"(?s)Traceback.*pickle"):
        scorer.score(EXAMPLE, "lambda", NO_IDS)
    assert scorer.score(EXAMPLE, "a", NO_IDS).value == 1.0
    scorer.close()


def test_components_are_finite_numbers():
    with pytest.raises(ValueError, match=r"Score\(components=\{'parsed': nan\}\) must be finite numbers"):
        Score(0.0, {"parsed": float("nan")})
