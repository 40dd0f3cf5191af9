"""What the studies' tests share: tiny models with heads, and a report to nobody."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig


@pytest.fixture(scope="session")
def make_model(tiny_trunk: Callable[..., PreTrainedModel]) -> Callable[..., MTPModel]:
    """A model whose weights are moved off their initial values: branches that start at zero would hide faults."""

    def make(
        head: str = "sequential",
        vocab_size: int = 4,
        depth: int = 4,
        dtype: torch.dtype = torch.float32,
        tied: bool = False,
        **config,
    ) -> MTPModel:
        trunk = tiny_trunk("llama", vocab_size=vocab_size, hidden_size=16, dtype=dtype, tied=tied)
        generator = torch.Generator().manual_seed(1)
        model = MTPModel.from_trunk(
            trunk, MTPConfig(head=head, depth=depth, initializer_range=0.2, **config), generator
        )
        with torch.no_grad():
            for weight in [*model.parameters()]:
                weight.add_(0.15 * torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(dtype))
        return model

    return make


@pytest.fixture(scope="session")
def nobody() -> Callable[[float, str], None]:
    """A report that nobody reads."""
    return lambda fraction, note: None
