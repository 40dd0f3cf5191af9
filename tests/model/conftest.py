"""Models with heads on tiny random trunks of four architectures."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig

VOCAB_SIZE = 31


@pytest.fixture(params=("llama", "qwen3", "gpt2", "gpt_neox"))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make_trunk(tiny_trunk: Callable[..., PreTrainedModel]) -> Callable[..., PreTrainedModel]:
    def make(family: str, tied: bool = False, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
        return tiny_trunk(family, vocab_size=VOCAB_SIZE, tied=tied, dtype=dtype)

    return make


@pytest.fixture
def make_model(make_trunk: Callable[..., PreTrainedModel]) -> Callable[..., MTPModel]:
    def make(family: str, tied: bool = False, dtype: torch.dtype = torch.float64, depth: int = 4, **config) -> MTPModel:
        heads = MTPConfig(depth=depth, initializer_range=0.2, **config)
        return MTPModel.from_trunk(make_trunk(family, tied, dtype), heads, torch.Generator().manual_seed(1))

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(2, VOCAB_SIZE, (2, 9), generator=torch.Generator().manual_seed(2))
