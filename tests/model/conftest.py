"""Tiny random trunks of four architectures, and models on them."""

from collections.abc import Callable

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from worldmtp.config import MTPConfig
from worldmtp.model import MTPModel

VOCAB_SIZE = 31
FAMILIES = ("llama", "qwen3", "gpt2", "gpt_neox")


def trunk_config(family: str, tie: bool) -> PreTrainedConfig:
    common = {"vocab_size": VOCAB_SIZE, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    wide = {**common, **sizes, "max_position_embeddings": 64, "initializer_range": 0.2, "tie_word_embeddings": tie}
    match family:
        case "llama":
            return LlamaConfig(**wide, num_key_value_heads=2)
        case "qwen3":
            return Qwen3Config(**wide, num_key_value_heads=2, head_dim=8)
        case "gpt_neox":
            return GPTNeoXConfig(**wide)
        case "gpt2":
            return GPT2Config(
                **common,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=64,
                initializer_range=0.2,
                tie_word_embeddings=tie,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            )
    raise ValueError(family)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make_trunk() -> Callable[..., PreTrainedModel]:
    def make(family: str, tie: bool = False, dtype: torch.dtype = torch.float64, **kwargs) -> PreTrainedModel:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(trunk_config(family, tie), dtype=dtype, **kwargs).eval()

    return make


@pytest.fixture
def make_model(make_trunk: Callable[..., PreTrainedModel]) -> Callable[..., MTPModel]:
    def make(
        family: str, tie: bool = False, dtype: torch.dtype = torch.float64, depth: int = 4, **config
    ) -> MTPModel:
        trunk = make_trunk(family, tie, dtype)
        heads = MTPConfig(depth=depth, initializer_range=0.2, **config)
        return MTPModel.from_trunk(trunk, heads, generator=torch.Generator().manual_seed(1))

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(2, VOCAB_SIZE, (2, 9), generator=torch.Generator().manual_seed(2))
