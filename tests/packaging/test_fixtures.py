"""The shared fixtures do what they promise: other rooms' tests lean on them."""

import random
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch

TrunkFactory = Callable[..., Any]
Guard = Callable[[], AbstractContextManager[None]]

KINDS = ("llama", "qwen3", "gpt2", "gpt_neox")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_trunk_has_the_asked_size_and_tying(tiny_trunk: TrunkFactory, kind: str, tied: bool) -> None:
    trunk = tiny_trunk(kind, vocab_size=11, hidden_size=16, num_layers=1, tied=tied, dtype=torch.float64)
    assert trunk.config.model_type == kind
    assert trunk.get_input_embeddings().weight.shape == (11, 16)
    assert (trunk.get_input_embeddings().weight is trunk.get_output_embeddings().weight) == tied
    logits = trunk(input_ids=torch.tensor([[3, 4, 5]])).logits
    assert logits.shape == (1, 3, 11)
    assert logits.dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_trunk_weights_come_from_the_seed_alone(tiny_trunk: TrunkFactory, kind: str) -> None:
    first, again, other = (tiny_trunk(kind, seed=seed).get_input_embeddings().weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", KINDS)
def test_trunk_has_no_dropout_in_train_mode(tiny_trunk: TrunkFactory, kind: str) -> None:
    trunk = tiny_trunk(kind).train()
    input_ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(trunk(input_ids=input_ids).logits, trunk(input_ids=input_ids).logits)


def test_making_a_trunk_draws_from_no_global_generator(tiny_trunk: TrunkFactory, global_rng_untouched: Guard) -> None:
    with global_rng_untouched():
        tiny_trunk("llama")


@pytest.mark.parametrize(
    ("name", "draw"),
    [("random", random.random), ("numpy.random", np.random.rand), ("torch", lambda: torch.rand(1))],
)
def test_a_draw_from_a_global_generator_is_noticed(
    name: str, draw: Callable[[], object], global_rng_untouched: Guard
) -> None:
    with pytest.raises(AssertionError, match=f"drawn from global generators: {name};"), global_rng_untouched():
        draw()


def test_connections_beyond_loopback_are_refused() -> None:
    with socket.socket() as outside, pytest.raises(RuntimeError, match="tests use no network"):
        outside.connect(("192.0.2.1", 80))  # TEST-NET-1, RFC 5737: nobody answers there


def test_loopback_is_allowed() -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())


def test_one_thread_for_each_worker() -> None:
    assert torch.get_num_threads() == 1
