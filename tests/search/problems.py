"""Random search problems in tables, the same for mctx and for these tests, from a numpy seed."""

from dataclasses import dataclass

import numpy as np

NUM_PROBLEMS = 64
_SHAPES = (
    # actions, simulations, deepest level, candidates
    (2, 1, None, 2),
    (3, 2, None, 3),
    (5, 4, None, 16),
    (8, 7, None, 4),
    (8, 16, None, 16),
    (5, 33, None, 4),
    (3, 33, 2, 2),
    (8, 64, 4, 8),
)


@dataclass(frozen=True)
class Problem:
    """A deterministic world: action a in state s leads to ``following[s, a]``; rows start at ``roots``."""

    following: np.ndarray
    logits: np.ndarray
    values: np.ndarray
    rewards: np.ndarray
    discounts: np.ndarray
    roots: np.ndarray
    invalid: np.ndarray
    num_simulations: int
    max_depth: int | None
    num_considered: int


def make_problem(seed: int) -> Problem:
    """Return a problem; some of its edges end the episode, and in every other one some actions are invalid."""
    rng = np.random.default_rng(seed)
    actions, num_simulations, max_depth, num_considered = _SHAPES[seed % len(_SHAPES)]
    batch, states = 3, 500
    invalid = rng.random((batch, actions)) < (0.4 if seed // len(_SHAPES) % 2 else 0.0)
    invalid[np.arange(batch), rng.integers(actions, size=batch)] = False
    discounts = rng.uniform(0.5, 1.0, (states, actions)) * (rng.random((states, actions)) > 0.15)
    return Problem(
        following=rng.integers(states, size=(states, actions)),
        logits=rng.normal(size=(states, actions)) * 2,
        values=rng.normal(size=states),
        rewards=rng.normal(size=(states, actions)),
        discounts=discounts,
        roots=rng.integers(states, size=batch),
        invalid=invalid,
        num_simulations=num_simulations,
        max_depth=max_depth,
        num_considered=num_considered,
    )
