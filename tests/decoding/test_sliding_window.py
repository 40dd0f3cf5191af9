"""Trunks with sliding windows, all layers or some: greedy texts are transformers', past the window and with drafts."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, MistralConfig, Qwen3Config

from worldmtp.decoding import generate
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig

COMMON = {
    "vocab_size": 7,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "sliding_window": 4,
    "pad_token_id": 0,
    "eos_token_id": None,
    "bos_token_id": None,
}
CONFIGS = {
    "mistral": MistralConfig(**COMMON),
    "qwen3": Qwen3Config(**COMMON, use_sliding_window=True, max_window_layers=1),
    "gemma3": Gemma3TextConfig(**COMMON, layer_types=["sliding_attention", "full_attention"]),
}


@pytest.mark.parametrize("draft", [{}, {"tree": (2, 2)}, {"draft": "none"}], ids=str)
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_window_is_a_mask(kind, draft):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = AutoModelForCausalLM.from_config(CONFIGS[kind], dtype=torch.float64).eval()
    config = MTPConfig(head="latent", depth=3, head_init="random", initializer_range=0.3)
    model = MTPModel.from_trunk(trunk, config, torch.Generator().manual_seed(0)).eval()
    ids = torch.randint(2, 7, (1, 9), generator=torch.Generator().manual_seed(1))
    output = generate(model, ids, max_new_tokens=12, **draft)
    expected = trunk.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    assert torch.equal(output.sequences, expected)
    wide = generate(model, ids.expand(3, -1), torch.ones(3, 9), max_new_tokens=12, **draft)
    assert torch.equal(wide.sequences[1:2], expected)
