"""Sampled decoding has the trunk's law, whatever drafts: draws against the law enumerated by full forwards.

4000 texts of three tokens; cells that expect fewer than five are put together. The statistic's bound is the chi-square
quantile exceeded with probability 1e-6 (Wilson & Hilferty 1931), so that the parameters below, with fixed seeds, raise
a false alarm once in a hundred thousand rewrites of this file.
"""

from itertools import product

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from worldmtp.decoding import generate

NUM_TEXTS, NUM_TOKENS, VOCAB = 4000, 3, 5
Z = 4.753  # the normal quantile exceeded with probability 1e-6
PLAIN = {}
CUT = {"temperature": 0.8, "top_k": 4, "top_p": 0.9, "repetition_penalty": 1.3}


def law(trunk, prompt: torch.Tensor, settings: dict) -> np.ndarray:
    """Probability of every text of three tokens, by transformers' own processors on full forwards."""
    processors = LogitsProcessorList()
    if settings:
        processors.append(RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"]))
        processors.append(TemperatureLogitsWarper(settings["temperature"]))
        processors.append(TopKLogitsWarper(settings["top_k"]))
        processors.append(TopPLogitsWarper(settings["top_p"]))
    texts = torch.tensor(list(product(range(VOCAB), repeat=NUM_TOKENS)))
    ids = torch.cat([prompt.expand(len(texts), -1), texts], dim=1)
    log_prob = torch.zeros(len(texts), dtype=torch.float64)
    with torch.no_grad():
        logits = trunk(ids).logits
    for step in range(NUM_TOKENS):
        length = prompt.shape[1] + step
        scores = processors(ids[:, :length], logits[:, length - 1])
        log_prob += scores.log_softmax(dim=-1).gather(1, texts[:, step, None])[:, 0]
    return log_prob.exp().numpy()


def chi_square(counts: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The statistic and its bound."""
    assert counts[expected == 0].sum() == 0
    rare = expected < 5
    cells = np.append(counts[~rare], counts[rare].sum()), np.append(expected[~rare], expected[rare].sum())
    kept = cells[1] > 0
    df = kept.sum() - 1
    statistic = ((cells[0] - cells[1])[kept] ** 2 / cells[1][kept]).sum()
    return float(statistic), float(df * (1 - 2 / (9 * df) + Z * np.sqrt(2 / (9 * df))) ** 3)


@pytest.mark.parametrize("settings", [PLAIN, CUT], ids=["plain", "cut"])
@pytest.mark.parametrize("draft", ["sequential", "latent", "eagle", "medusa", "tree", "lookup", "model", "none"])
def test_the_law_is_the_trunks(model_of, tiny_trunk, draft, settings):
    head = draft if draft in ("sequential", "latent", "eagle", "medusa") else "latent"
    model = model_of("llama", head, 3, vocab_size=VOCAB, seed=2)
    model.trunk.lm_head.weight.data *= 12  # random trunks are nearly uniform, and would hide a bias
    small = tiny_trunk("llama", vocab_size=VOCAB, num_layers=1, dtype=torch.float64, seed=5)
    small.lm_head.weight.data *= 12
    chosen = {"tree": {"tree": (2, 2)}, "model": {"draft": small, "num_draft": 2}}
    chosen |= {name: {"draft": name} for name in ("lookup", "none")}
    prompt = torch.tensor([[3, 1, 4, 3, 1]])
    output = generate(
        model,
        prompt.expand(NUM_TEXTS, -1).contiguous(),
        torch.ones(NUM_TEXTS, 5),
        max_new_tokens=NUM_TOKENS,
        do_sample=True,
        generator=torch.Generator().manual_seed(1),
        **settings,
        **chosen.get(draft, {}),
    )
    new = output.sequences[:, 5:]
    codes = (new * torch.tensor([VOCAB**2, VOCAB, 1])).sum(dim=1)
    counts = np.bincount(codes, minlength=VOCAB**NUM_TOKENS)
    expected = law(model.trunk, prompt, settings)
    assert expected.sum() == pytest.approx(1)
    statistic, bound = chi_square(counts, NUM_TEXTS * expected)
    assert statistic < bound
    drawn = np.log(expected[codes])
    np.testing.assert_allclose(output.logprobs.sum(dim=1).numpy(), drawn, atol=1e-9)
    # The test would see a wrong law: uniform draws over the same cells fail by far.
    wrong = np.random.default_rng(0).multinomial(NUM_TEXTS, (expected > 0) / (expected > 0).sum())
    statistic, bound = chi_square(wrong, NUM_TEXTS * expected)
    assert statistic > 3 * bound


def test_equal_generators_give_equal_texts_and_no_global_one_is_touched(model_of, ragged, global_rng_untouched):
    model = model_of("llama", "sequential", 4)
    ids, mask = ragged(3, 5, seed=0)
    with global_rng_untouched():
        first, second = (
            generate(model, ids, mask, max_new_tokens=8, do_sample=True, generator=torch.Generator().manual_seed(3))
            for _ in range(2)
        )
    assert torch.equal(first.sequences, second.sequences)


def test_sampling_without_a_generator_is_refused(model_of, ragged):
    with pytest.raises(ValueError, match=r"do_sample=True draws; pass generator=torch\.Generator"):
        generate(model_of(), *ragged(1, 3, seed=0), max_new_tokens=2, do_sample=True)


def test_three_phases_would_be_biased(model_of, ragged):
    with pytest.raises(ValueError, match="throws away the trunk's corrections, which biases draws"):
        generate(
            model_of(), *ragged(1, 3, seed=0), max_new_tokens=2, do_sample=True, three_phase=True,
            generator=torch.Generator(),
        )  # fmt: skip
