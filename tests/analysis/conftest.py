"""A two-token Markov world small enough to hold every path as often as it is probable, so that means are exact.

x0 is the prompt, uniform; x1, x2, x3 are the policy's, from A = [[3/4, 1/4], [1/2, 1/2]]. Path probabilities are
multiples of 1/128, so 128 sequences represent the law without sampling error.
"""

import itertools

import numpy as np
import pytest

from worldmtp import statistics
from worldmtp.analysis import EvalArtefact

TRANSITION = np.array([[0.75, 0.25], [0.5, 0.5]])


def all_paths():
    """Paths (x0, x1, x2, x3), each repeated 128 * probability times."""
    paths = []
    for path in itertools.product([0, 1], repeat=4):
        weight = 128 * 0.5 * np.prod([TRANSITION[a, b] for a, b in itertools.pairwise(path)])
        paths += [path] * round(float(weight))
    assert len(paths) == 128
    return np.array(paths)


def entropy(probabilities):
    return -(probabilities * np.log(probabilities)).sum(axis=-1)


def markov_artefact(heads, **changes):
    """The world with ``heads[k-1][a]``, the law that depth k states of the token k after a token a.

    A head that is None is sequential: it has seen the tokens between, and states the trunk's own law.
    """
    paths = all_paths()
    batch, length, depth = *paths.shape, len(heads)
    shape = (batch, length, depth)
    chain = np.full((batch, length), np.nan)
    chain_entropy = np.full((batch, length), np.nan)
    chain[:, 1:] = np.log(TRANSITION[paths[:, :-1], paths[:, 1:]])
    chain_entropy[:, 1:] = entropy(TRANSITION[paths[:, :-1]])
    logprob, confidence, uncertainty = (np.full(shape, np.nan) for _ in range(3))
    top1 = np.zeros(shape, dtype=np.int64)
    for k, head in enumerate(heads, start=1):
        law = TRANSITION[paths[:, k - 1 : -1]] if head is None else head[paths[:, :-k]]  # (batch, length - k, 2)
        logprob[:, k:, k - 1] = np.log(np.take_along_axis(law, paths[:, k:, None], axis=2)[:, :, 0])
        confidence[:, k:, k - 1] = law.max(axis=2)
        uncertainty[:, k:, k - 1] = entropy(law)
        top1[:, k:, k - 1] = law.argmax(axis=2)
    policy = np.zeros((batch, length), dtype=bool)
    policy[:, 1:] = True
    unknown = np.full((batch, length), np.nan)
    fields = {
        "input_ids": paths,
        "attention_mask": np.ones((batch, length), dtype=bool),
        "action_mask": policy,
        "prompt_length": np.ones(batch, dtype=np.int64),
        "returns": paths[:, 3].astype(np.float64),
        "rewards": np.where(np.arange(length) == 3, paths, 0).astype(np.float64),
        "exact": paths[:, 3] == 1,
        "chain_logprob": chain,
        "chain_entropy": chain_entropy,
        "head_logprob": logprob,
        "head_entropy": uncertainty,
        "head_top1": top1,
        "head_top1_prob": confidence,
        "imagined_return": unknown,
        "realized_return": unknown.copy(),
        "imagined_tokens": np.zeros((batch, length, 2), dtype=np.int64),
        "imagined_token_prob": np.full((batch, length, 2), np.nan),
        "imagined_horizon": 2,
        "tokens_text": ("a", "b"),
    }
    return EvalArtefact(**{**fields, **changes})


@pytest.fixture(scope="session")
def transition():
    return TRANSITION


@pytest.fixture(scope="session")
def make_artefact():
    return markov_artefact


@pytest.fixture(scope="session")
def marginal_heads():
    """What perfect parallel heads state: A, A^2, A^3."""
    return [np.linalg.matrix_power(TRANSITION, k) for k in (1, 2, 3)]


@pytest.fixture
def quick_report(monkeypatch):
    """Draws no picture of a report, at which test_report looks, and resamples less often than is published."""
    real = statistics._percentile_bootstrap

    def fewer(sums, statistic, level, num_resamples, generator):
        return real(sums, statistic, level, min(num_resamples, 1000), generator)

    monkeypatch.setattr("worldmtp.analysis.figures.png_data_uri", lambda figure: "data:,")
    monkeypatch.setattr(statistics, "_percentile_bootstrap", fewer)
