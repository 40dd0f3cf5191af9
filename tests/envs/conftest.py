"""Tasks whose episodes can be worked by hand."""

import gymnasium
import numpy as np
import pytest

from worldmtp.envs import CharTokenizer, Example, Score, TextGenEnv, TextGenVectorEnv


class EchoTask:
    """Repeat a word of one to three letters; half of the credit for as many letters as the word has."""

    probe_bound = 0.5

    def __init__(self, max_length: int = 3) -> None:
        self.max_length = max_length

    def sample(self, rng, split):
        word = "".join("ab"[index] for index in rng.integers(2, size=rng.integers(1, self.max_length + 1)))
        return Example(prompt=word + "=", answer=word)

    def score(self, example, text, ids):
        word = example.prompt[:-1]
        exact = text == word
        return Score(1.0 if exact else 0.5 * (len(text) == len(word)), {"length": float(len(text))}, exact=exact)


@pytest.fixture
def echo_problem():
    """Arguments of an environment: 14 words, about half of them held out; prompts and answers of up to 4 tokens."""
    return {
        "task": EchoTask(),
        "tokenizer": CharTokenizer("ab="),
        "max_prompt": 4,
        "max_new": 4,
        "heldout_fraction": 0.5,
        "pool_size": 32,
    }


@pytest.fixture
def make_vector(echo_problem):
    def make(num_envs, autoreset_mode="same_step", **changes):
        return TextGenVectorEnv(num_envs, autoreset_mode=autoreset_mode, **(echo_problem | changes))

    return make


@pytest.fixture
def make_single(echo_problem):
    def make(**changes):
        return TextGenEnv(**(echo_problem | changes))

    return make


@pytest.fixture
def words():
    """Examples by word."""
    return lambda *names: [Example(prompt=name + "=", answer=name) for name in names]


@pytest.fixture
def registered_ids():
    import worldmtp.envs  # noqa: F401 - registers

    return sorted(name for name in gymnasium.registry if name.startswith("worldmtp/"))


@pytest.fixture
def rng():
    return np.random.default_rng(0)
