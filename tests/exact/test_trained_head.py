"""Heads trained on a hidden Markov source: what is measured of them with the trunk alone is what the law says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from worldmtp.analysis.consistency import certificate, kept_paths, misaligned_by, sequence_interval, tower_residual
from worldmtp.analysis.loss_split import bracketed_split, exact_split, expected_loss, realized_loss
from worldmtp.dynamics import OracleWorldModel, acting_policy
from worldmtp.dynamics.futures import draw_futures
from worldmtp.exact import block_hmm
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.objective import MTPObjective
from worldmtp.studies.training import Batch, TrainingConfig, train

DEPTH, FIRST_ROOT, ROOTS, TEXTS, FUTURES = 3, 8, 8, 200, 32
WORDS = block_hmm(2, 2, 0.15)
# Texts begin anywhere in a word, so that a place in the text says nothing.
SOURCE = replace(WORDS, start=torch.full((4,), 0.25, dtype=torch.float64))


@pytest.fixture(scope="module")
def trained():
    config = LlamaConfig(
        vocab_size=4,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        trunk = LlamaForCausalLM(config)
    model = MTPModel.from_trunk(trunk, MTPConfig(head="parallel", depth=DEPTH), torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)

    def batch_of(step):
        tokens, _ = SOURCE.sample(48, 24, generator)
        return Batch(tokens, tokens)

    train(model, batch_of, MTPObjective(), TrainingConfig(num_steps=700, learning_rate=4e-3, weight_decay=0.01))
    return model.eval()


@pytest.fixture(scope="module")
def texts():
    return SOURCE.sample(TEXTS, FIRST_ROOT + ROOTS + DEPTH, torch.Generator().manual_seed(2))[0]


@pytest.fixture(scope="module")
def measured(trained, texts):
    """Heads' laws at the roots, the trunk's log-probabilities of what came, and futures that the trunk draws."""
    roots = torch.arange(FIRST_ROOT, FIRST_ROOT + ROOTS)
    with torch.no_grad():
        logits = [said.double().log_softmax(dim=-1) for said in trained(texts).depth_logits]
    predicted = torch.stack([said[:, roots].exp() for said in logits], dim=2).numpy()
    said = logits[0][:, :-1].gather(2, texts[:, 1:, None])[..., 0].numpy()
    chain = said[:, FIRST_ROOT + np.arange(ROOTS)[:, None] + np.arange(DEPTH)]
    oracle = OracleWorldModel(trained)
    rows = torch.arange(TEXTS).repeat_interleave(ROOTS)
    with torch.no_grad():
        state = oracle.encode(texts, torch.ones_like(texts, dtype=torch.bool), rows, roots.repeat(TEXTS))
    futures = draw_futures(oracle, state, DEPTH, FUTURES, acting_policy(1.0), torch.Generator().manual_seed(3))
    return predicted, chain, futures.conditionals.double().unflatten(0, (TEXTS, ROOTS)).numpy()


@pytest.fixture(scope="module")
def truth(texts):
    beliefs = SOURCE.beliefs(texts)[:, 1 + FIRST_ROOT : 1 + FIRST_ROOT + ROOTS]
    split = SOURCE.true_split(beliefs, DEPTH)
    return SOURCE.marginals(beliefs, DEPTH).numpy(), split.noise.numpy(), split.structural.numpy()


@pytest.mark.slow
def test_the_measured_split_is_the_true_one_at_every_depth(measured, truth, texts):
    predicted, chain, futures = measured
    marginals, noise, structural = truth
    split = bracketed_split(realized_loss(predicted, texts.numpy(), FIRST_ROOT), -chain, futures)
    exact = exact_split(expected_loss(marginals, predicted), noise, structural)
    for depth in range(1, DEPTH + 1):
        for part in ("loss", "noise", "structural", "error"):
            found = split.interval(part, depth, generator=0, level=0.99)
            expected = exact.interval(part, depth, generator=0).estimate
            # A trunk that has learnt is not the law: .01 nats are its own.
            assert found.low - 0.01 <= expected <= found.high + 0.01, (part, depth, found, expected)
            assert found.high - found.low < 0.15
    # The heads are as good as their kind can be: what deeper ones lose is structural.
    for depth in (2, 3):
        assert exact.interval("structural", depth, generator=0).estimate > 0.05
        assert exact.interval("error", depth, generator=0).estimate < 0.02


@pytest.mark.slow
def test_trained_heads_are_one_world(measured, texts):
    predicted, _, _ = measured
    assert misaligned_by(predicted, texts.numpy(), generator=0, first_root=FIRST_ROOT) == 0
    assert abs(sequence_interval(tower_residual(predicted), generator=0).estimate) < 0.05


@pytest.mark.slow
def test_the_certificate_holds_and_a_wrong_reward_head_violates_it(measured, texts):
    """Reward: how many of the next three tokens are the first of the second word."""
    predicted, chain, _ = measured
    tokens = texts.numpy()
    ahead = tokens[:, FIRST_ROOT + np.arange(ROOTS)[:, None] + np.arange(1, DEPTH + 1)]
    kept = kept_paths(predicted, chain, tokens, FIRST_ROOT)
    imagined, realized = predicted[..., 2].sum(axis=2), (ahead == 2).sum(axis=2).astype(float)
    assert certificate(imagined, realized, kept, float(DEPTH), generator=0).verdict == "holds"
    planted = imagined + 0.75 * (DEPTH - imagined)
    assert certificate(planted, realized, kept, float(DEPTH), generator=0).verdict == "violated"
