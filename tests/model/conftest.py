"""Models with heads on tiny random trunks of four architectures."""

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from transformers import PreTrainedModel

from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.model.lora import add_lora

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


@pytest.fixture
def lora() -> Callable[..., peft.LoraConfig]:
    """Makes a small adapter for a family's projections."""
    targets = {"gpt2": ["c_attn", "c_fc"], "gpt_neox": ["query_key_value", "dense_4h_to_h"]}

    def make(family: str = "llama", **options: Any) -> peft.LoraConfig:
        modules = targets.get(family, ["q_proj", "down_proj"])
        return peft.LoraConfig(
            **{"r": 3, "lora_alpha": 6, "target_modules": modules, "fan_in_fan_out": family == "gpt2", **options}
        )

    return make


@pytest.fixture
def disturb() -> Callable[..., None]:
    """Moves every weight that is to be trained: B starts at zero, and would hide that an adapter is not used."""

    def move(model: MTPModel, seed: int = 5) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))

    return move


@pytest.fixture
def adapted(make_model: Callable[..., MTPModel], lora: Callable[..., peft.LoraConfig]) -> Callable[..., MTPModel]:
    """Makes models with adapters."""

    def make(family: str = "llama", config: peft.LoraConfig | None = None, **options: Any) -> MTPModel:
        model = make_model(family, depth=3, **options)
        return add_lora(model, config or lora(family), torch.Generator().manual_seed(4))

    return make


@pytest.fixture
def outputs() -> Callable[[MTPModel, torch.Tensor], torch.Tensor]:
    """Reads the logits of all depths."""
    return lambda model, tokens: torch.stack(model(tokens).depth_logits)
