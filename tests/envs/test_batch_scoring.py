"""Several answers at once: the task is asked once, and failures are counted as if each were asked alone."""

import sys
import warnings

import numpy as np
import pytest

from worldmtp.envs import Example, Score, Scorer
from worldmtp.envs.scoring_workers import ScoringError

NO_IDS = np.zeros(0, dtype=np.int64)
EXAMPLE = Example("a=", "a")


class Together:
    """Worth the text as a number; the last batch is remembered. ``fault`` is what batches do instead."""

    def __init__(self, fault=None):
        self.fault, self.batches = fault, []

    def sample(self, rng, split):
        return EXAMPLE

    def score(self, example, text, ids):
        return Score(float(text))

    def score_batch(self, answers):
        self.batches.append([text for _, text, _ in answers])
        if self.fault is not None:
            return self.fault(answers)
        return [self.score(*answer) for answer in answers]


def answers(*texts):
    return [(EXAMPLE, text, NO_IDS) for text in texts]


def test_a_batch_is_one_call_on_stripped_texts():
    task = Together()
    scorer = Scorer(task)
    assert scorer.score_batch(answers("1", " 0.5\n", "0")) == [Score(1.0), Score(0.5), Score(0.0)]
    assert scorer.score(*answers("0.25")[0]) == Score(0.25)
    assert task.batches == [["1", "0.5", "0"]]  # one answer is scored by score
    assert (scorer.counters.scored, scorer.counters.errors) == (4, 0)
    assert scorer.counters.seconds > 0


def test_failures_in_a_batch_are_counted_one_by_one():
    scorer = Scorer(Together())
    with pytest.warns(RuntimeWarning, match=r"scoring 'x' for the prompt 'a=' failed(.|\n)*could not convert string"):
        scores = scorer.score_batch(answers("1", "x", "0.5", "y"))
    assert scores == [Score(1.0), Score(0.0, reason="error"), Score(0.5), Score(0.0, reason="error")]
    assert (scorer.counters.scored, scorer.counters.errors) == (4, 2)
    with pytest.raises(ValueError, match="could not convert string to float: 'x'"):
        Scorer(Together(), on_error="raise").score_batch(answers("1", "x"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda batch: [Score(9.0)], r"must return 2 worldmtp\.envs\.Score, got \[Score\(value=9"),
        (lambda batch: [1.0, 2.0], r"must return 2 worldmtp\.envs\.Score, got \[1\.0"),
        (lambda batch: 1 / 0, "division by zero"),
        (lambda batch: sys.exit(0), r"the scorer raised SystemExit\(0\)"),
    ],
)
def test_a_batch_that_fails_by_itself_is_shown_once_and_pays_what_single_answers_pay(fault, message):
    scorer = Scorer(Together(fault))
    shown = rf"scoring 2 answers together failed, and none of them failed alone(.|\n)*{message}"
    with pytest.warns(RuntimeWarning, match=shown):
        assert scorer.score_batch(answers("1", "0.5")) == [Score(1.0), Score(0.5)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scorer.score_batch(answers("1", "0.5")) == [Score(1.0), Score(0.5)]
    assert (scorer.counters.scored, scorer.counters.errors) == (4, 0)
    with pytest.raises((TypeError, ZeroDivisionError, ScoringError), match=message):
        Scorer(Together(fault), on_error="raise").score_batch(answers("1", "0.5"))
