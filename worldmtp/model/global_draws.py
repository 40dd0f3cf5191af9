"""Lend torch's global state a seed, for code that draws from it alone: modules' initial weights, PEFT's adapters."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def global_draws_from(source: torch.Generator | int | None) -> Iterator[None]:
    """Draw the host's global numbers from a generator or a seed; the global state is put back afterwards.

    None leaves the global state as it is: draws then are those of Hugging Face's own code.
    """
    if source is None:
        yield
        return
    if isinstance(source, torch.Generator):
        source = int(torch.randint(2**62, (1,), generator=source, device=source.device))
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(source)
        yield
