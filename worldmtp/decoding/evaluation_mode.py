"""Models in evaluation mode for the length of a block, and as they were afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Turn dropout off; afterwards every module is in the mode it was in, also where they differ inside one model."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(modes[0][1])
        for module, was_training in modes:
            module.training = was_training
