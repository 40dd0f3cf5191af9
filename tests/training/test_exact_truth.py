"""The truth beside a model's heads: places and depths by plain loops, the belief's reader by hand."""

import numpy as np
import pytest
import torch

from worldmtp.envs import CharTokenizer
from worldmtp.envs.tasks.exact_world import ExactWorld
from worldmtp.envs.tasks.strings import Copy
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.training import exact_truth
from worldmtp.training.exact_truth import ExactTruth, belief_errors, exact_texts, measured_truth

PREFIX, ANSWER, DEPTH, COUNT = 3, 4, 3, 12
WORLD = ExactWorld("mess3", prefix_length=PREFIX, answer_length=ANSWER)
TOKENIZER = CharTokenizer("ABC:")


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    return [WORLD.sample(rng, "heldout") for _ in range(COUNT)]


@pytest.fixture(scope="module")
def texts(examples):
    return exact_texts(WORLD, TOKENIZER, examples, DEPTH)


@pytest.fixture(scope="module", params=["parallel", "sequential"])
def model(request, tiny_trunk):
    trunk = tiny_trunk("llama", vocab_size=TOKENIZER.vocab_size, hidden_size=16, dtype=torch.float64)
    config = MTPConfig(head=request.param, depth=DEPTH, initializer_range=0.3)
    return MTPModel.from_trunk(trunk, config, torch.Generator().manual_seed(0)).double().eval()


def test_the_law_stands_at_its_place(texts, examples):
    """Token by token: what comes j places into the answer, given all before it and the goal."""
    law = WORLD.law
    for row, example in enumerate(examples):
        goal, prefix = WORLD.parts(example.prompt)
        for root in range(ANSWER):
            for k in range(1, DEPTH + 1):
                place = root + k - 1  # in the answer
                if place >= ANSWER:
                    assert torch.isnan(texts.exact[row, root, k - 1]).all()
                    continue
                beliefs = law.source.beliefs(law.tokens_of([prefix + example.answer[:place]]))[:, -1]
                said = law.marginals(beliefs, law.tokens_of([goal])[:, 0], ANSWER - place, 1)[0, 0]
                assert torch.allclose(texts.exact[row, root, k - 1], said)
        # The last token is the goal, whatever came.
        wanted = [float(symbol == goal) for symbol in law.symbols]
        assert texts.exact[row, ANSWER - 1, 0].tolist() == pytest.approx(wanted)
    assert torch.isnan(texts.noise).sum() == COUNT * (0 + 1 + 2)
    assert torch.allclose(texts.structural[:, :, 0], torch.zeros(1, dtype=torch.float64))


def test_a_model_is_read_at_the_root_of_each_depth(model, texts, examples):
    truth = measured_truth(model, texts)
    with torch.no_grad():
        logits = model(texts.input_ids).depth_logits
    for row, example in enumerate(examples):
        for root in range(ANSWER):
            for k in range(1, min(DEPTH, ANSWER - root) + 1):
                place = len(example.prompt) - 1 + root
                said = logits[k - 1][row, place].softmax(dim=-1)[[2, 3, 4]]  # behind padding and the end
                exact = texts.exact[row, root, k - 1]
                noise, gap = texts.noise[row, root, k - 1], texts.structural[row, root, k - 1]
                perfect, floor = (exact, noise) if truth.told else (texts.marginals[row, root, k - 1], noise + gap)
                luck = -torch.special.xlogy(exact, perfect).sum() - floor
                wanted = -(exact * said.log()).sum() - luck
                assert truth.loss[row, root, k - 1] == pytest.approx(float(wanted))
                kept = torch.minimum(exact, said).sum()
                assert truth.accept[row, root, k - 1] == pytest.approx(float(kept))
    assert bool(truth.told) == (model.config.head == "sequential")
    perfect = truth.accept_exact[:, :, 1:][np.isfinite(truth.accept_exact[:, :, 1:])]
    assert np.allclose(perfect, 1) == bool(truth.told)


def test_a_few_at_a_time_are_as_good(model, texts, examples, monkeypatch):
    whole = measured_truth(model, texts)
    monkeypatch.setattr(exact_truth, "_MAX_NUMBERS", 2 * ANSWER * TOKENIZER.vocab_size)
    parts = measured_truth(model, exact_texts(WORLD, TOKENIZER, examples, DEPTH))
    for name in ("loss", "noise", "structural", "belief_errors"):
        assert np.allclose(getattr(parts, name), getattr(whole, name), equal_nan=True)


def test_what_holds_the_belief_reads_it_and_a_constant_nothing():
    beliefs = torch.rand((20, 3, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mixed = beliefs @ torch.tensor([[1.0, 2.0], [0.0, -1.0]], dtype=torch.float64)
    noise = torch.rand((20, 3, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    errors, spread = belief_errors((mixed, noise), beliefs)
    assert errors.shape == (10, 2)
    share = 1 - errors.sum(dim=0) / spread.sum()
    assert float(share[0]) > 0.999
    assert abs(float(share[1])) < 0.3
    # The spread by hand, of the second half.
    asked = beliefs[10:].flatten(0, 1)
    assert float(spread.sum()) == pytest.approx(float(((asked - asked.mean(dim=0)) ** 2).sum()))


def test_what_has_no_law_says_nothing_and_what_cannot_be_measured_says_why(examples, monkeypatch):
    assert ExactTruth(Copy(), TOKENIZER, examples, DEPTH).notes == ()
    assert ExactTruth(WORLD, TOKENIZER, examples, DEPTH).notes == ()
    (note,) = ExactTruth(WORLD, TOKENIZER, examples[:3], DEPTH).notes
    assert "3 held-out texts are too few" in note

    class Doubling(CharTokenizer):
        def encode(self, text):
            return [token for token in super().encode(text) for _ in range(2)]

    (note,) = ExactTruth(WORLD, Doubling("ABC:"), examples, DEPTH).notes
    assert "does not write each token of the source as one id" in note

    class Merging(CharTokenizer):  # byte pairs: each symbol alone is one id, and so is "AB"
        def encode(self, text):
            return super().encode(text.replace("AB", "A"))

    (note,) = ExactTruth(WORLD, Merging("ABC:"), examples, DEPTH).notes
    assert "does not write each token of the source as one id" in note
    monkeypatch.setattr(exact_truth, "_MAX_NUMBERS", 3**2 * 3)
    (note,) = ExactTruth(WORLD, TOKENIZER, examples, DEPTH).notes
    assert "to depth 2 of 3" in note
