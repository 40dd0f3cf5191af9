"""Texts that somebody else writes in: a session that is extended says what one that is filled anew says."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig

from worldmtp.decoding import DecodingSession, SamplingConfig
from worldmtp.decoding.drafts import make_drafter
from worldmtp.decoding.lean import lean_runner, make_runner
from worldmtp.decoding.sampling import DecodingPolicy
from worldmtp.decoding.trunk import HuggingFaceRunner
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig

VOCAB = 7
CAPACITY = 48
DRAFTS = {
    "none": {"draft": "none"},
    "lookup": {"draft": "lookup", "num_draft": 3},
    "latent": {"head": "latent"},
    "latent tree": {"head": "latent", "tree": (2, 2)},
    "medusa": {"head": "medusa"},
    "hydra": {"head": "hydra"},
    "parallel": {"head": "parallel"},
    "sequential": {"head": "sequential"},
    "sequential tree": {"head": "sequential", "tree": (2, 1, 2)},
    "eagle": {"head": "eagle"},
    "latent far": {"head": "latent", "num_draft": 6},
    "sequential shared": {"head": "sequential", "share_depths": True},
    "a model": {"draft": "a model", "num_draft": 3},
}


def open_session(
    model: MTPModel,
    small: MTPModel,
    spec: dict,
    runner=None,
    policy: DecodingPolicy | None = None,
    capacity: int = CAPACITY,
) -> DecodingSession:
    draft = spec.get("draft", "mtp")
    drafter = make_drafter(model, small.trunk if draft == "a model" else draft, spec.get("num_draft"), spec.get("tree"))
    policy = policy or DecodingPolicy(SamplingConfig(), None)
    return DecodingSession(model, runner or make_runner(model), drafter, policy, capacity)


def texts_of(session: DecodingSession) -> list[list[int]]:
    """Texts with their newest tokens."""
    return [row[: n + 1].tolist() for row, n in zip(session.texts.ids, session.texts.num_cached, strict=True)]


def fill(session: DecodingSession, texts: list[list[int]]) -> torch.Tensor:
    """Prefill with texts; returns the first tokens."""
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
    mask = torch.arange(longest) < torch.tensor([len(text) for text in texts])[:, None]
    return session.prefill(ids, mask).tokens[:, 0]


def log_policies(model: MTPModel, texts: list[list[int]]) -> torch.Tensor:
    """What follows each text, by uncached forwards of the trunk alone."""
    with torch.no_grad():
        return torch.stack([model.trunk(torch.tensor([text])).logits[0, -1].log_softmax(-1) for text in texts])


def extend_at_random(session: DecodingSession, rng: np.random.Generator, model: MTPModel, most: int = 4) -> None:
    """Cut some texts, write 0 to ``most`` tokens behind some, and hold what follows to uncached forwards."""
    num_rows = len(session.texts)
    before, whole = texts_of(session), session.texts.num_cached + 1
    takes_part = rng.random(num_rows) < 0.7
    takes_part[rng.integers(num_rows)] = True
    counts = np.where(takes_part, rng.integers(0, most + 1, size=num_rows), 0)
    cut = np.maximum(whole - rng.integers(0, 4, size=num_rows), 1)
    lengths = np.where(takes_part, np.where(rng.random(num_rows) < 0.5, cut, whole), whole)
    written = rng.integers(2, VOCAB, size=(num_rows, most))
    num_forwards = session.num_trunk_forwards
    one = session.extend(torch.from_numpy(written), counts, lengths, takes_part)
    assert session.num_trunk_forwards == num_forwards + 1
    expected = [
        text[:length] + new[:count].tolist()
        for text, length, new, count in zip(before, lengths, written, counts, strict=True)
    ]
    now = texts_of(session)
    for row in range(num_rows):
        assert now[row][: len(expected[row])] == expected[row]
        assert len(now[row]) == len(expected[row]) + takes_part[row]
    followed = [expected[row] for row in np.flatnonzero(takes_part)]
    log_policy = log_policies(model, followed)
    torch.testing.assert_close(one.log_policy[:, 0], log_policy, atol=1e-10, rtol=0)
    assert torch.equal(one.tokens[:, 0], log_policy.argmax(-1))
    assert one.tokens[:, 0].tolist() == [now[row][-1] for row in np.flatnonzero(takes_part)]
    assert one.counts.tolist() == [1] * len(followed)


def assert_next_round_is_that_of_a_fresh_one(session: DecodingSession, fresh: DecodingSession, drafts: int | None):
    """Drafts, their distributions and what is accepted of them; both advance."""
    texts = texts_of(session)
    assert fill(fresh, [text[:-1] for text in texts]).tolist() == [text[-1] for text in texts]
    ours, theirs = session.advance(drafts), fresh.advance(drafts)
    assert torch.equal(ours.draft.num_drafts, theirs.draft.num_drafts)
    if ours.draft.tree is None:
        is_real = torch.arange(ours.draft.tokens.shape[1]) < ours.draft.num_drafts[:, None]
        assert torch.equal(ours.draft.tokens[is_real], theirs.draft.tokens[is_real])
    else:
        assert torch.equal(ours.draft.tokens, theirs.draft.tokens)
    for own, other in zip(ours.draft.logits, theirs.draft.logits, strict=True):
        torch.testing.assert_close(own, other, atol=1e-10, rtol=0)
    given = torch.arange(ours.tokens.shape[1]) < torch.from_numpy(ours.counts)[:, None]
    torch.testing.assert_close(ours.log_policy[given], theirs.log_policy[given], atol=1e-10, rtol=0)
    assert ours.num_accepted.tolist() == theirs.num_accepted.tolist()
    assert texts_of(session) == texts_of(fresh)


def play(model: MTPModel, small: MTPModel, spec: dict, seed: int, ragged: Callable, runner=None) -> None:
    """Extensions, rounds with and without drafts, and dropped rows, in random order."""
    rng = np.random.default_rng(seed)
    session = open_session(model, small, spec, runner)
    session.prefill(*(part if index == 0 else part.bool() for index, part in enumerate(ragged(5, 4, seed))))
    for _ in range(6):
        event = rng.choice(["extend", "extend", "advance", "plain", "drop"])
        if event == "extend":
            extend_at_random(session, rng, model)
        elif event == "drop" and len(session.texts) > 2:
            session.drop(np.arange(len(session.texts)) == rng.integers(len(session.texts)))
        elif session.texts.num_cached.max() < CAPACITY - 8:
            session.advance(0 if event == "plain" else None)
    if session.texts.num_cached.max() < CAPACITY - 8:
        extend_at_random(session, rng, model)
        fresh = open_session(model, small, spec, runner)
        assert_next_round_is_that_of_a_fresh_one(session, fresh, None)
        assert_next_round_is_that_of_a_fresh_one(session, fresh, None)


@pytest.mark.parametrize("name", DRAFTS)
def test_an_extended_session_is_one_filled_anew(name, model_of, ragged):
    spec = DRAFTS[name]
    options = {"share_depths": True} if spec.get("share_depths") else {}
    model = model_of(head=spec.get("head", "latent"), **options)
    for seed in range(5):
        play(model, model_of(seed=1), spec, seed, ragged)


def test_a_model_that_drafts_reads_what_replaced_the_end_of_a_text(model_of):
    """One row, cut by three tokens and given three others: it is as long as before, and not what was read."""
    model, small = model_of(head="latent"), model_of(seed=1)
    session, fresh = (open_session(model, small, DRAFTS["a model"]) for _ in range(2))
    fill(session, [[2, 3, 4, 5, 6, 2]])
    session.extend(torch.tensor([[6, 4, 6]]), np.array([3]), session.texts.num_cached + 1 - 3)
    assert_next_round_is_that_of_a_fresh_one(session, fresh, None)


class Calls:
    """A runner whose calls are counted by the number of tokens a row."""

    def __init__(self, runner):
        self.runner, self.widths = runner, []

    copied_bytes = 0

    def begin(self, num_positions):
        self.runner.begin(num_positions)

    def __call__(self, input_ids, *rest):
        self.widths.append(input_ids.shape[1])
        return self.runner(input_ids, *rest)


def sliding(model_of) -> MTPModel:
    """A window of four tokens, which texts outgrow."""
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = MistralConfig(**sizes, sliding_window=4, pad_token_id=0, eos_token_id=None, bos_token_id=None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    heads = MTPConfig(head="latent", depth=4, head_init="random", initializer_range=0.3)
    return MTPModel.from_trunk(trunk, heads, torch.Generator().manual_seed(0)).eval()


@pytest.mark.parametrize("kind", ["llama", "llama by its own forward", "qwen3", "gpt2", "gpt_neox", "sliding"])
def test_every_runner_is_extended(kind, model_of, ragged):
    model = sliding(model_of) if kind == "sliding" else model_of(kind.split()[0], "latent")
    assert (lean_runner(model) is None) == (kind in ("gpt2", "gpt_neox", "sliding"))
    runner = HuggingFaceRunner(model) if kind == "llama by its own forward" else make_runner(model)
    for seed in (0, 1, 2):
        play(model, model, DRAFTS["latent"], seed, ragged, runner)


def test_rows_that_take_no_part_stay_as_they_are(model_of, ragged):
    """To the bit, cache and draft included; and the trunk reads the newest token and what was written, no more."""
    model = model_of(head="latent")
    calls = Calls(make_runner(model))
    session = open_session(model, model, DRAFTS["latent"], calls)
    prompts, mask = ragged(4, 6, 0)
    session.prefill(prompts, mask.bool())
    stays, texts, cached = [0, 2], texts_of(session), session.texts.num_cached.copy()
    keys = [layer.keys.clone() for layer in session.texts.cache.layers]
    root = session._drafter._root.clone()
    session.extend(torch.tensor([[0, 0, 0], [4, 5, 6], [0, 0, 0], [3, 0, 0]]), np.array([0, 3, 0, 1]))
    assert calls.widths == [6, 4]
    assert [texts_of(session)[row] for row in stays] == [texts[row] for row in stays]
    assert torch.equal(session._drafter._root[stays], root[stays])
    for before, layer in zip(keys, session.texts.cache.layers, strict=True):
        for row in stays:
            assert torch.equal(layer.keys[row, :, : cached[row]], before[row, :, : cached[row]])
    assert (session.texts.num_cached - cached).tolist() == [0, 4, 0, 2]


def test_texts_of_another_length_fill_their_room(model_of):
    """One row's text takes the last slot that a chosen token leaves; padding of the others writes over none of it."""
    model = model_of()
    session = open_session(model, model, DRAFTS["none"], capacity=9)
    fill(session, [[2, 3, 4, 5, 6, 2], [3]])
    texts = texts_of(session)
    one = session.extend(torch.tensor([[5, 0, 0, 0], [2, 3, 4, 5]]), np.array([1, 4]))
    expected = log_policies(model, [[*texts[0], 5], [*texts[1], 2, 3, 4, 5]])
    torch.testing.assert_close(one.log_policy[:, 0], expected, atol=1e-10, rtol=0)
    assert session.texts.num_cached.tolist() == [8, 6]
    two = session.extend(torch.tensor([[0], [4]]), np.array([0, 1]))
    torch.testing.assert_close(
        two.log_policy[:, 0], log_policies(model, [texts_of(session)[1][:-1]]), atol=1e-10, rtol=0
    )
    with pytest.raises(ValueError, match=r"a text of 10 tokens, one to be chosen included, exceeds .* capacity of 9"):
        session.extend(torch.tensor([[4], [0]]), np.array([1, 0]), np.array([8, 9]))


@pytest.mark.parametrize(
    ("counts", "lengths", "takes_part", "message"),
    [
        ([0, 0], None, None, r"no row takes part in this extension; leave it out"),
        ([3, 0], None, None, r"rows \[0\] are given \[3\] of 2 tokens behind \[4\] of \[4\]; expected 0 to all"),
        ([1, -1], None, None, r"rows \[1\] are given \[-1\] of 2 tokens behind \[3\] of \[3\]"),
        ([1, 1], [4, 4], None, r"rows \[1\] are given \[1\] of 2 tokens behind \[4\] of \[3\]"),
        ([1, 1], [0, 3], None, r"rows \[0\] are given \[1\] of 2 tokens behind \[0\] of \[4\]"),
        ([1, 0], [4, 2], None, r"rows \[1\] are written to or cut and take no part; let them take part"),
        ([1, 1], None, [True, False], r"rows \[1\] are written to or cut and take no part"),
        ([1], None, None, r"counts has 1 rows and the session 2; say it of each of its rows"),
    ],
)
def test_extensions_that_cannot_be(counts, lengths, takes_part, message, model_of):
    model = model_of()
    session = open_session(model, model, DRAFTS["none"])
    fill(session, [[2, 3, 4], [5, 6]])
    with pytest.raises(ValueError, match=message):
        session.extend(
            torch.full((2, 2), 3),
            np.array(counts),
            None if lengths is None else np.array(lengths),
            None if takes_part is None else np.array(takes_part),
        )


@pytest.mark.parametrize("name", ["none", "sequential", pytest.param("a model", marks=pytest.mark.slow)])
def test_drawn_tokens_follow_the_trunk(name, model_of):
    """Of 20 000 rows, the token behind what was written, and the two after it, in rounds that draft.

    343 triples, of which those expected less than ten times are one cell. Chi-square over its degrees of freedom has
    mean 1 and variance 2 / dof; six standard deviations are exceeded with probability below 1e-6; the seed is fixed.
    """
    num_rows, prompt, reply = 20_000, [2, 5, 3], [4, 6, 6]
    model = model_of(head="sequential")
    policy = DecodingPolicy(SamplingConfig(do_sample=True), torch.Generator().manual_seed(0))
    session = open_session(model, model_of(seed=1), DRAFTS[name], policy=policy, capacity=16)
    fill(session, [prompt] * num_rows)
    session.advance()
    written = torch.tensor([reply] * num_rows)
    # Whatever was decided behind the first token of the prompt's end is thrown away: every text is the same again.
    session.extend(written, np.full(num_rows, 3), np.full(num_rows, 3))
    while (session.texts.num_cached < 8).any():
        session.advance(1)
    drawn = session.texts.ids[:, 6:9]
    law = torch.zeros(VOCAB, VOCAB, VOCAB, dtype=torch.float64)
    base = [*prompt, *reply]
    first = log_policies(model, [base])[0]
    for one in range(VOCAB):
        second = log_policies(model, [[*base, one]])[0]
        third = log_policies(model, [[*base, one, two] for two in range(VOCAB)])
        law[one] = first[one] + second[:, None] + third
    expected = num_rows * law.exp().flatten().numpy()
    counts = np.bincount((drawn * torch.tensor([49, 7, 1])).sum(dim=1).numpy(), minlength=343)
    is_rare = expected < 10
    counts, expected = (np.append(values[~is_rare], values[is_rare].sum()) for values in (counts, expected))
    excess = ((counts - expected) ** 2 / expected.clip(1e-9)).sum() - (len(counts) - 1)
    assert excess < 6 * (2 * (len(counts) - 1)) ** 0.5
