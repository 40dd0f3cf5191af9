"""Models with heads of every family on tiny random trunks, in double precision unless a test asks for less."""

import functools
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig

VOCAB_SIZE = 19
HIDDEN_SIZE = 16


@pytest.fixture(scope="session")
def make_trunk(tiny_trunk: Callable[..., PreTrainedModel]) -> Callable[..., PreTrainedModel]:
    def make(kind: str, tied: bool = False, dtype: torch.dtype = torch.float64, num_layers: int = 2) -> PreTrainedModel:
        sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": HIDDEN_SIZE, "num_layers": num_layers}
        return tiny_trunk(kind, tied=tied, dtype=dtype, **sizes)

    return make


@pytest.fixture(scope="session")
def make_model(make_trunk: Callable[..., PreTrainedModel]) -> Callable[..., MTPModel]:
    """``shaken`` moves the heads' weights off their initial values: branches that start at zero would hide faults."""

    def make(
        kind: str,
        tied: bool = False,
        dtype: torch.dtype = torch.float64,
        num_layers: int = 2,
        shaken: bool = False,
        depth: int = 4,
        **config,
    ) -> MTPModel:
        heads = MTPConfig(depth=depth, initializer_range=0.2, **config)
        model = MTPModel.from_trunk(make_trunk(kind, tied, dtype, num_layers), heads, torch.Generator().manual_seed(1))
        if shaken:
            generator = torch.Generator().manual_seed(5)
            with torch.no_grad():
                for weight in model.heads.parameters():
                    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
                    weight.add_((0.2 * noise).to(dtype))
        return model

    return make


@pytest.fixture(scope="session")
def shaken_model(make_model: Callable[..., MTPModel]) -> Callable[..., MTPModel]:
    """The shaken model of a trunk and a family, made once: for tests that leave it and its gradients as they were."""

    @functools.cache
    def get(kind: str, head: str) -> MTPModel:
        return make_model(kind, head=head, shaken=True).requires_grad_(False)

    return get


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(2, VOCAB_SIZE, (2, 7), generator=torch.Generator().manual_seed(2))
