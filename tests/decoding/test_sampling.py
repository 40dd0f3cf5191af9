"""Processed logits are Hugging Face's, row for row without padding."""

import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from worldmtp.decoding.sampling import SamplingConfig, processed_logits

VOCAB = 11


@pytest.fixture
def places():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, VOCAB, generator=generator, dtype=torch.float64)
    logits[2, :4] = logits[2].max()  # ties at the top
    contexts = torch.randint(VOCAB, (6, 9), generator=generator)
    return logits, contexts, torch.tensor([9, 1, 4, 4, 7, 2])


def theirs(processors, logits, contexts, lengths):
    rows = []
    for row, context, length in zip(logits, contexts, lengths.tolist(), strict=True):
        scores = row[None]
        for processor in processors:
            scores = processor(context[None, :length], scores)
        rows.append(scores[0])
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("config", "processors"),
    [
        ({"temperature": 0.7}, [TemperatureLogitsWarper(0.7)]),
        ({"top_k": 3}, [TopKLogitsWarper(3)]),
        ({"top_k": 50}, []),
        ({"top_p": 0.8}, [TopPLogitsWarper(0.8)]),
        ({"top_p": 1e-9}, [TopPLogitsWarper(1e-9)]),
        ({"repetition_penalty": 1.7}, [RepetitionPenaltyLogitsProcessor(1.7)]),
        (
            {"repetition_penalty": 0.6, "temperature": 1.9, "top_k": 6, "top_p": 0.7},
            [
                RepetitionPenaltyLogitsProcessor(0.6),
                TemperatureLogitsWarper(1.9),
                TopKLogitsWarper(6),
                TopPLogitsWarper(0.7),
            ],
        ),
        (
            {"processors": (NoRepeatNGramLogitsProcessor(2), MinPLogitsWarper(0.05)), "temperature": 0.5},
            [NoRepeatNGramLogitsProcessor(2), MinPLogitsWarper(0.05), TemperatureLogitsWarper(0.5)],
        ),
    ],
    ids=[
        "temperature",
        "top_k",
        "top_k_of_all",
        "top_p",
        "top_p_of_one",
        "penalty",
        "all_in_order",
        "given_processors",
    ],
)
def test_parity_with_transformers(places, config, processors):
    logits, contexts, lengths = places
    found = processed_logits(logits, SamplingConfig(do_sample=True, **config), contexts, lengths)
    torch.testing.assert_close(found, theirs(processors, logits, contexts, lengths), rtol=0, atol=0)


def test_a_tail_of_just_one_minus_top_p_is_cut():
    """Four tokens of a quarter each, exact in floats: at 3/4 the last quarter goes, a little above it stays."""
    logits = torch.zeros(1, 4)
    for top_p, num_kept in ((0.75, 3), (0.5, 2), (0.25, 1), (0.76, 4)):
        found = processed_logits(logits, SamplingConfig(do_sample=True, top_p=top_p))
        assert int(found.isfinite().sum()) == num_kept
        assert int(TopPLogitsWarper(top_p)(torch.zeros(1, 1, dtype=torch.long), logits).isfinite().sum()) == num_kept


def test_greedy_heeds_penalties_and_nothing_else(places):
    logits, contexts, lengths = places
    config = SamplingConfig(temperature=0.3, top_k=1, top_p=0.1)
    assert processed_logits(logits, config) is logits
    penalized = processed_logits(logits, SamplingConfig(repetition_penalty=1.2), contexts, lengths)
    torch.testing.assert_close(
        penalized, theirs([RepetitionPenaltyLogitsProcessor(1.2)], logits, contexts, lengths), rtol=0, atol=0
    )


def test_half_precision_is_widened_first(places):
    logits = places[0].bfloat16()
    found = processed_logits(logits, SamplingConfig(do_sample=True, temperature=0.7))
    assert found.dtype == torch.float32
    assert torch.equal(found, logits.float() / 0.7)


def test_contexts_that_are_needed_are_asked_for(places):
    with pytest.raises(ValueError, match="reads the tokens so far; pass contexts"):
        processed_logits(places[0], SamplingConfig(repetition_penalty=2.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, r"temperature=0\.0 must be positive; for the limit of 0 use do_sample=False"),
        ({"temperature": float("nan")}, "temperature=nan must be positive"),
        ({"top_k": -1}, "top_k=-1 must be at least 0"),
        ({"top_p": 0.0}, r"top_p=0\.0 must lie in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p=1\.1 must lie"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty=0\.0 must be positive"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**changes)
