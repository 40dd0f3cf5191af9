"""Models of every family on tiny trunks, in float64, and padded text."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig

VOCAB, DEPTH, LENGTH = 11, 5, 9


@pytest.fixture
def make_model(tiny_trunk: Callable[..., PreTrainedModel]) -> Callable[..., MTPModel]:
    def make(kind: str, head: str = "sequential", depth: int = DEPTH, **heads) -> MTPModel:
        trunk = tiny_trunk(kind, vocab_size=VOCAB, hidden_size=16, dtype=torch.float64)
        config = MTPConfig(head=head, depth=depth, value_range=(0.0, 1.0), reward_range=(0.0, 1.0), **heads)
        model = MTPModel.from_trunk(trunk, config, torch.Generator().manual_seed(0)).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # world heads and some heads start at zero; here they must tell latents apart
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        return model

    return make


@pytest.fixture
def make_text() -> Callable[[str], tuple[Tensor, Tensor, Tensor]]:
    """Three rows of 9, 7 and 5 tokens, and where each row starts."""

    def make(side: str) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(2)
        input_ids = torch.randint(VOCAB, (3, LENGTH), generator=generator)
        index, lengths = torch.arange(LENGTH), torch.tensor([9, 7, 5])
        if side == "right":
            return input_ids, index < lengths[:, None], torch.zeros(3, dtype=torch.long)
        return input_ids, index >= (LENGTH - lengths)[:, None], LENGTH - lengths

    return make
