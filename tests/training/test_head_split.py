"""The split of a model's own heads against the enumeration of what its trunk would say."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from worldmtp.analysis import EvalArtefact
from worldmtp.analysis.open_loop import open_loop_split
from worldmtp.dynamics import OracleWorldModel
from worldmtp.dynamics.parallel import ParallelWorldModel
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.training import head_split
from worldmtp.training.head_split import measured_open_loop, measured_split, open_loop_scalars, split_scalars

VOCAB, PROMPT, ANSWER, TEXTS, EOS = 4, 2, 4, 40, 3


@pytest.fixture(scope="module")
def model(tiny_trunk):
    trunk = tiny_trunk("llama", vocab_size=VOCAB, hidden_size=16, dtype=torch.float64)
    with torch.no_grad():
        for weight in trunk.parameters():
            weight.mul_(3)  # so that the next token depends on the ones before
    config = MTPConfig(head="parallel", depth=2, initializer_range=0.2)
    return MTPModel.from_trunk(trunk, config, torch.Generator().manual_seed(0)).double().eval()


@pytest.fixture(scope="module")
def artefact(model):
    texts = torch.randint(EOS, (TEXTS, PROMPT + ANSWER), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        said = [logits.log_softmax(dim=-1) for logits in model(texts).depth_logits]
    shape = tuple(texts.shape)
    logprob, entropy = np.full((*shape, 2), np.nan), np.full((*shape, 2), np.nan)
    for k, law in enumerate(said, start=1):
        logprob[:, k:, k - 1] = law[:, :-k].gather(2, texts[:, k:, None])[..., 0].numpy()
        entropy[:, k:, k - 1] = -(law.exp() * law).sum(dim=-1)[:, :-k].numpy()
    acted = np.zeros(shape, dtype=bool)
    acted[:, PROMPT:] = True
    unknown = np.full(shape, np.nan)
    return EvalArtefact(
        input_ids=texts.numpy(),
        attention_mask=np.ones(shape, dtype=bool),
        action_mask=acted,
        prompt_length=np.full(TEXTS, PROMPT),
        returns=np.zeros(TEXTS),
        rewards=np.zeros(shape),
        exact=np.zeros(TEXTS, dtype=bool),
        chain_logprob=np.where(acted, logprob[..., 0], np.nan),
        chain_entropy=np.where(acted, entropy[..., 0], np.nan),
        head_logprob=logprob,
        head_entropy=entropy,
        head_top1=np.zeros((*shape, 2), dtype=np.int64),
        head_top1_prob=np.where(np.isfinite(logprob), 0.5, np.nan),
        imagined_return=unknown,
        realized_return=unknown,
        imagined_tokens=np.zeros((*shape, 1), dtype=np.int64),
        imagined_token_prob=np.full((*shape, 1), np.nan),
        imagined_horizon=1,
        tokens_text=tuple("abcd"),
    )


def plain_entropy(law):
    return -(law * law.log()).sum(dim=-1)


def true_structural(model, prefixes):
    """H(x_{t+2}) less the mean entropy after each x_{t+1}, given that x_{t+1} is no end; by all of them."""
    with torch.no_grad():
        first = model(prefixes, compute_depth_logits=False).logits[:, -1].softmax(dim=-1)[:, :EOS]
        first = first / first.sum(dim=1, keepdim=True)
        after = torch.stack(
            [
                model(
                    torch.cat([prefixes, torch.full_like(prefixes[:, :1], token)], dim=1), compute_depth_logits=False
                ).logits[:, -1]
                for token in range(EOS)
            ],
            dim=1,
        ).softmax(dim=-1)
    return plain_entropy((first[..., None] * after).sum(dim=1)) - (first * plain_entropy(after)).sum(dim=1)


def test_the_bracket_holds_what_the_trunk_would_say(model, artefact, monkeypatch):
    # One root a text: the last that has two tokens ahead, so that the truth can be enumerated.
    monkeypatch.setattr(np.random, "default_rng", lambda seed: Last())
    split = measured_split(model, artefact, 1.0, EOS, 5, num_futures=64)
    truth = true_structural(model, torch.from_numpy(artefact.input_ids[:, : PROMPT + ANSWER - 2]))
    assert float(truth.mean()) > 0.02
    assert split.structural_lower[:, 0, 1].mean() < float(truth.mean()) < split.structural_upper[:, 0, 1].mean()
    assert np.mean(split.structural_upper - split.structural_lower) < 0.5 * float(truth.mean())
    # The error is what is left of the realized loss.
    at = PROMPT + ANSWER - 1
    assert np.allclose(split.loss[:, 0, 1], -artefact.head_logprob[:, at, 1])
    assert np.allclose(split.noise[:, 0, 1], -artefact.chain_logprob[:, at])
    # Depth 1 is the trunk.
    assert np.allclose(split.structural_lower[:, 0, 0], 0, atol=1e-6)
    assert np.allclose(split.error_upper[:, 0, 0], 0, atol=1e-6)


class Last:
    """Chooses the root before the last two tokens."""

    def choice(self, places):
        return places[-2]


def test_few_roots_at_a_time_are_as_good(model, artefact, monkeypatch, global_rng_untouched):
    with global_rng_untouched():
        whole = split_scalars(measured_split(model, artefact, 1.0, EOS, 5), 5)
        monkeypatch.setattr(head_split, "_MAX_NUMBERS", 3 * 2 * 16 * VOCAB)
        parts = split_scalars(measured_split(model, artefact, 1.0, EOS, 5), 5)
    assert list(whole) == [
        f"world_model/depth_2/{part}{end}" for part in ("structural", "error") for end in ("", "_lo90", "_hi90")
    ]
    assert parts["world_model/depth_2/structural"] == pytest.approx(whole["world_model/depth_2/structural"], abs=0.02)
    assert whole["world_model/depth_2/error_lo90"] < whole["world_model/depth_2/error"]
    assert parts == split_scalars(measured_split(model, artefact, 1.0, EOS, 5), 5)


def test_nothing_is_said_of_answers_that_are_not_there(model, artefact):
    nobody = np.zeros_like(artefact.action_mask)
    assert measured_split(model, replace(artefact, action_mask=nobody), 1.0, EOS, 5) is None
    assert split_scalars(None, 0) == {}
    # A single token an answer: depth 2 is never reached.
    last = nobody.copy()
    last[:, -1] = True
    split = measured_split(model, replace(artefact, action_mask=last), 1.0, EOS, 5)
    assert split.num_sequences(1) == TEXTS
    assert split_scalars(split, 0) == {}


def test_the_trunk_rolled_along_is_the_trunk_that_reads_anew(model, artefact):
    """Its exposure is 1, and its context what nobody knows: the open loop of 64 paths is near the true marginal."""
    losses = measured_open_loop(OracleWorldModel(model), artefact, 1.0, EOS, torch.device("cpu"), 5, num_paths=64)
    known = np.isfinite(losses.full)
    assert known.any()
    assert np.allclose(losses.rolling[known], losses.full[known], atol=1e-6)
    assert np.allclose(losses.open_loop[:, :, 0][known[:, :, 0]], losses.full[:, :, 0][known[:, :, 0]], atol=5e-3)
    split = open_loop_split(losses, 2, generator=0)
    assert split.exposure.estimate == pytest.approx(1, abs=1e-6)
    assert split.context.low <= split.product.estimate <= split.context.high


def test_heads_that_are_blind_to_tokens_say_the_same_along_any(model, artefact):
    losses = measured_open_loop(ParallelWorldModel(model), artefact, 1.0, EOS, torch.device("cpu"), 5)
    scalars = open_loop_scalars(losses, 5)
    assert [scalars[f"world_model/depth_2/context{end}"] for end in ("", "_lo90", "_hi90")] == [1.0] * 3
    assert scalars["world_model/depth_2/exposure"] == scalars["world_model/depth_2/open_loop"]
    rows, _ = np.nonzero(np.isfinite(losses.rolling[:, :, 1]))
    assert len(rows) > 2
    # What the artefact says of the same heads, teacher-forced: at the one root of each text that was chosen.
    said = -artefact.head_logprob[rows, PROMPT:, 1]
    assert all(np.isclose(said[i], losses.rolling[row, 0, 1]).any() for i, row in enumerate(rows))


def test_nothing_is_rolled_without_a_world_model(artefact):
    assert measured_open_loop(None, artefact, 1.0, EOS, torch.device("cpu"), 5) is None
    assert open_loop_scalars(None, 5) == {}
