"""A tiny task, environment and model that the agent's tests share."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from worldmtp.config import MTPConfig
from worldmtp.envs import Example, Score, TextGenVectorEnv
from worldmtp.model import MTPModel

ALPHABET = "abcd="


class FirstLetter:
    """Prompt: two letters and "=". The answer is the first of them, then EOS; exactly that is paid."""

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        letters = "".join(rng.choice(list("abcd"), size=2))
        return Example(prompt=f"{letters}=", answer=letters[0])

    def score(self, example: Example, text: str, ids: np.ndarray) -> Score:
        right = text == example.answer
        return Score(value=float(right), components={}, reason="ok", exact=right)


def make_text_env(num_envs: int) -> TextGenVectorEnv:
    return TextGenVectorEnv(
        num_envs,
        autoreset_mode="disabled",
        task=FirstLetter(),
        tokenizer={"kind": "char", "alphabet": ALPHABET},
        max_prompt=3,
        max_new=3,
        pool_size=8,
        heldout_fraction=0.25,
    )


def make_tiny_model(depth: int = 3, seed: int = 0) -> MTPModel:
    config = LlamaConfig(
        vocab_size=2 + len(ALPHABET),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        trunk = LlamaForCausalLM(config)
    heads = MTPConfig(depth=depth, value_range=(0.0, 1.0), reward_range=(0.0, 1.0), num_value_bins=11)
    return MTPModel.from_trunk(trunk, heads, torch.Generator().manual_seed(seed)).eval()


@pytest.fixture
def text_env() -> Callable[[int], TextGenVectorEnv]:
    return make_text_env


@pytest.fixture
def tiny_model() -> Callable[..., MTPModel]:
    return make_tiny_model
