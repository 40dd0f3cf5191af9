"""Random streams of a run, one for each purpose, all of them derived from its seed.

Two uses of one seed would draw the same numbers: evaluation would sample with the numbers that training acts with, and
a pool of prompts would be the list of demonstrations. Streams are derived from (seed, purpose), so a run's seed changes
every one of them and no two purposes share one.
"""

import zlib

import numpy as np


def stream_seed(seed: int, purpose: str) -> int:
    """Return a seed in [0, 2^63) for ``purpose`` in a run of ``seed``, by numpy's SeedSequence over both.

    Raises:
        ValueError: the seed is negative.
    """
    if seed < 0:
        raise ValueError(f"seed={seed} must be at least 0.")
    sequence = np.random.SeedSequence([seed, zlib.crc32(purpose.encode())])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)
