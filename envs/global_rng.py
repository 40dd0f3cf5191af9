"""Python's and numpy's global generators, lent to code of others that knows no other and put back as they were."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def seeded_global_rng(seed: int) -> Iterator[None]:
    """Seed both within the block, and restore them after it."""
    python_state, numpy_state = random.getstate(), np.random.get_state(legacy=False)
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


class GlobalStream:
    """A state of both generators that somebody keeps for himself and has in place only while he runs."""

    def __init__(self) -> None:
        self.seed(0)

    def seed(self, seed: int) -> None:
        """Begin the stream anew."""
        self._python_state = random.Random(seed).getstate()
        self._numpy_state = np.random.RandomState(seed).get_state(legacy=False)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """The stream is in place within the block, goes on from where it was, and keeps what it comes to."""
        python_state, numpy_state = random.getstate(), np.random.get_state(legacy=False)
        random.setstate(self._python_state)
        np.random.set_state(self._numpy_state)
        try:
            yield
        finally:
            self._python_state, self._numpy_state = random.getstate(), np.random.get_state(legacy=False)
            random.setstate(python_state)
            np.random.set_state(numpy_state)
