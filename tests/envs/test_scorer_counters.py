"""What a scorer counts: answers and turns that were asked about, each once, and failures by their kind."""

import numpy as np
import pytest

from worldmtp.envs import CharTokenizer, Example, Score, TextGenVectorEnv
from worldmtp.envs.scoring import Scorer
from worldmtp.envs.worlds.task import WorldTask

NO_IDS = np.zeros(0, dtype=np.int64)


class AsksSomebody:
    """Its score is that of a service, which may not answer."""

    def sample(self, rng, split):
        return Example("a=")

    def score(self, example, text, ids):
        if text == "slow":
            raise TimeoutError("the service did not answer")
        return Score(1.0)


@pytest.mark.filterwarnings("ignore:scoring 'slow' for the prompt:RuntimeWarning")
def test_a_timeout_that_the_scorer_raises_itself_is_an_error():
    """No limit was given, so none was exceeded."""
    scorer = Scorer(AsksSomebody())
    scores = [scorer.score(Example("a="), text, NO_IDS) for text in ("slow", "fast", "slow")]
    assert [(score.value, score.reason) for score in scores] == [(0.0, "error"), (1.0, "ok"), (0.0, "error")]
    assert (scorer.counters.scored, scorer.counters.errors, scorer.counters.timeouts) == (3, 2, 0)


class Counts:
    def reset(self, seed):
        self.num_turns = 0
        return "a=", {}

    def step(self, text):
        self.num_turns += 1
        return "a" * self.num_turns, 0.125, False, self.num_turns == 3, {}


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize("timeout_seconds", [None, 60.0])
def test_a_turn_is_counted_once_however_often_its_world_is_told_what_was_said(timeout_seconds):
    envs = TextGenVectorEnv(
        2,
        autoreset_mode="disabled",
        task=WorldTask(Counts, num_seeds=64),
        tokenizer=CharTokenizer("a="),
        max_prompt=2,
        max_new=12,
        pool_size=4,
        timeout_seconds=timeout_seconds,
    )
    envs.reset(seed=0)
    for num_turns in (1, 2, 3):
        envs.step(np.array([1, 1]))
        assert envs.scorer.counters.scored == 2 * num_turns
        saved = envs.state()
        envs.load_state(saved)
    envs.close()
