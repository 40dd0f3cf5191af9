"""Greedy decoding equals transformers' ``generate``, token for token, in float64, whatever drafts.

Vocabularies are small: random heads are then right often enough for every path of acceptance to be taken, and ends of
text fall inside drafts.
"""

import itertools

import numpy as np
import pytest
import torch
from transformers import Cache

from worldmtp.decoding import generate
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.objective import MTPObjective
from worldmtp.studies.training import Batch, TrainingConfig, train

PAD, EOS = 0, 1
FAMILIES = ["sequential", "latent", "hydra", "eagle", "blockwise", "parallel", "modulated", "linear", "medusa"]
TRUNKS = ["llama", "qwen3", "gpt2", "gpt_neox"]
TREES = [(2,), (2, 2, 1), (1, 3, 2, 1, 1)]


def thinned(*axes):
    """All combinations of values, each value of an axis in the default suite about equally often; the others are slow.

    A combination is in the default suite where the places of its values add up to a multiple of the first axis' length.
    """
    combinations = itertools.product(*(enumerate(axis) for axis in axes))
    return [
        pytest.param(
            *(value for _, value in one), marks=[pytest.mark.slow] if sum(p for p, _ in one) % len(axes[0]) else []
        )
        for one in combinations
    ]


def reference(trunk, ids, mask, max_new_tokens, **settings) -> list[list[int]]:
    """What transformers says, from the first new token to the end of text."""
    settings = {"do_sample": False, "eos_token_id": EOS, "pad_token_id": PAD} | settings
    found = trunk.generate(ids, attention_mask=mask, max_new_tokens=max_new_tokens, **settings)
    rows = found[:, ids.shape[1] :].tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]


def new_tokens(output, width: int) -> list[list[int]]:
    return [row[width : width + n].tolist() for row, n in zip(output.sequences, output.lengths.tolist(), strict=True)]


@pytest.mark.parametrize("draft", [{}, {"num_draft": 1}, {"tree": (2, 2, 1)}, {"tree": (3,)}], ids=str)
@pytest.mark.parametrize("head", FAMILIES)
def test_every_family_on_ragged_rows(model_of, ragged, head, draft):
    model = model_of("llama", head, 4)
    ids, mask = ragged(6, 9, seed=1)
    output = generate(model, ids, mask, max_new_tokens=14, eos_token_id=EOS, pad_token_id=PAD, **draft)
    assert new_tokens(output, 9) == reference(model.trunk, ids, mask, 14)
    assert output.accepted_per_depth.sum() > 0


@pytest.mark.parametrize(("kind", "depth", "head"), thinned(TRUNKS, range(2, 9), ["sequential", "latent"]))
def test_every_trunk_and_depth(model_of, ragged, kind, depth, head):
    """1 to 16 rows, prompts of 1 to 40, padded right for even depths; transformers' are padded left."""
    model = model_of(kind, head, depth, seed=depth)
    shape = (2 * depth, 5 * depth)
    ids, mask = ragged(*shape, seed=depth, right=depth % 2 == 0)
    output = generate(model, ids, mask, max_new_tokens=11, eos_token_id=EOS, pad_token_id=PAD)
    assert new_tokens(output, ids.shape[1]) == reference(model.trunk, *ragged(*shape, seed=depth), 11)


@pytest.mark.parametrize(("kind", "tree", "head"), thinned(TRUNKS, TREES, ["sequential", "latent", "eagle"]))
def test_every_trunk_with_trees(model_of, ragged, kind, tree, head):
    depth = 1 + len(tree)
    model = model_of(kind, head, depth, seed=depth)
    output = generate(
        model, *ragged(5, 17, seed=depth), max_new_tokens=13, eos_token_id=EOS, pad_token_id=PAD, tree=tree
    )
    assert new_tokens(output, 17) == reference(model.trunk, *ragged(5, 17, seed=depth), 13)


@pytest.mark.parametrize("tree", [(3, 2, 1), (2, 2), (4,)], ids=str)
def test_drafts_of_a_tree_are_counted_by_depth(model_of, ragged, tree):
    output = generate(model_of(), *ragged(3, 5, seed=1), max_new_tokens=9, tree=tree)
    num_rounds = int(output.num_rounds.sum())
    # Each round of a row drafts each token ahead once, however many candidates it has.
    assert output.drafted_per_depth.tolist() == [num_rounds] * len(tree)
    assert output.accepted_per_depth.shape == (len(tree),)
    assert (np.diff(output.accepted_per_depth, prepend=num_rounds) <= 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gpt_neox"])
def test_half_precision_takes_likeliest_tokens(tiny_trunk, ragged, kind, dtype):
    """Forwards of one and of several tokens round differently, so ties may fall either way, and nothing else may."""
    trunk = tiny_trunk(kind, vocab_size=7, dtype=dtype)
    config = MTPConfig(head="sequential", depth=4, initializer_range=0.3)
    model = MTPModel.from_trunk(trunk, config, torch.Generator().manual_seed(0)).to(dtype).eval()
    ids, mask = ragged(5, 8, seed=1)
    output = generate(model, ids, mask, max_new_tokens=16, eos_token_id=EOS, pad_token_id=PAD)
    assert output.logprobs.dtype == torch.float32
    exact = trunk.double()
    for row, length in enumerate(output.lengths.tolist()):
        text = torch.cat([ids[row][mask[row].bool()], output.sequences[row, 8 : 8 + length]])
        with torch.no_grad():
            logits = exact(text[None]).logits[0, -length - 1 : -1]
        chosen = logits.gather(1, text[-length:, None])[:, 0]
        spread = float(logits.std())
        assert bool((logits.amax(dim=1) - chosen <= 0.05 * spread).all())


@pytest.mark.parametrize("head", ["sequential", "latent", "eagle", "medusa"])
def test_trained_heads_draft_far_and_change_nothing(model_of, ragged, head):
    """Trained on a cycle of the vocabulary, the heads are right nearly always, and texts as they were."""
    model = model_of("llama", head, 4)
    cycle = torch.arange(200) % 5 + 2

    def batch_of(step: int) -> Batch:
        ids = torch.stack([cycle[start : start + 24] for start in range(step % 5, step % 5 + 8)])
        return Batch(ids, ids)

    train(model, batch_of, MTPObjective(), TrainingConfig(num_steps=60, learning_rate=1e-2, warmup_steps=5))
    ids, mask = ragged(4, 6, seed=0)
    ids[1:] = cycle[:6]
    mask[1:] = 1
    for draft in ({}, {"tree": (2, 2, 2)}):
        output = generate(model, ids, mask, max_new_tokens=30, eos_token_id=EOS, pad_token_id=PAD, **draft)
        assert new_tokens(output, 6) == reference(model.trunk, ids, mask, 30)
        assert output.tokens_per_forward > 3


@pytest.mark.parametrize("draft", ["mtp", "lookup", "none", "model", "tree"])
@pytest.mark.parametrize(
    "settings", [{"repetition_penalty": 1.4}, {"max_new_tokens": 1}, {"max_new_tokens": 2}], ids=str
)
def test_every_kind_of_draft(model_of, tiny_trunk, ragged, draft, settings):
    model = model_of("qwen3", "sequential", 3, seed=3)
    ids, mask = ragged(1, 12, seed=2)  # transformers counts padding as repeated
    small = tiny_trunk("llama", vocab_size=7, num_layers=1, dtype=torch.float64, seed=5)
    chosen = {"model": {"draft": small}, "tree": {"tree": (2, 2)}}.get(draft, {"draft": draft})
    settings = {"max_new_tokens": 20} | settings
    output = generate(model, ids, mask, eos_token_id=EOS, pad_token_id=PAD, **settings, **chosen)
    assert new_tokens(output, 12) == reference(model.trunk, ids, mask, **settings)


@pytest.mark.parametrize("head", ["latent", "sequential", "eagle"])
def test_penalties_read_the_branch_that_became_text(model_of, head):
    """Of a tree's drafts those that were accepted count as seen, wherever among their siblings they stood."""
    options = {"max_new_tokens": 40, "pad_token_id": PAD, "repetition_penalty": 1.5}
    for seed in range(2):
        model = model_of("llama", head, 4, seed=seed)
        ids = torch.randint(2, 7, (9, 6), generator=torch.Generator().manual_seed(seed))
        plain = generate(model, ids, torch.ones_like(ids), draft="none", **options)
        found = generate(model, ids, torch.ones_like(ids), tree=(3, 3, 2), **options)
        assert torch.equal(found.sequences, plain.sequences)


@pytest.mark.parametrize("tree", [None, (2, 1, 1)], ids=["chain", "tree"])
@pytest.mark.parametrize("head", ["latent", "sequential", "eagle", "medusa"])
def test_drafts_are_processed_over_the_drafts_before_them(model_of, head, tree):
    """A processor that lets nothing but the last token plus one pass is foreseen only by who hands it that token."""

    def counts_up(contexts, scores):
        following = (contexts[:, -1] - 1) % 5 + 2  # 2 3 4 5 6 2 ..
        return torch.full_like(scores, -torch.inf).scatter(1, following[:, None], 0.0)

    ids = torch.tensor([[2, 3], [6, 4]])
    options = {"max_new_tokens": 12, "logits_processors": [counts_up], "tree": tree}
    output = generate(model_of("llama", head, 4), ids, torch.ones_like(ids), **options)
    assert output.sequences[0].tolist() == [2, 3, 4, 5, 6, 2, 3, 4, 5, 6, 2, 3, 4, 5]
    assert output.sequences[1].tolist() == [6, 4, 5, 6, 2, 3, 4, 5, 6, 2, 3, 4, 5, 6]
    assert output.num_rounds.tolist() == [3, 3]  # the prompt's forward gives one token, rounds four each: 1 + 3 x 4


def test_heads_off_is_the_plain_model_bit_for_bit(model_of, ragged):
    model = model_of("llama", "latent", 4)
    ids, mask = ragged(5, 8, seed=4)
    options = {"max_new_tokens": 12, "eos_token_id": EOS, "pad_token_id": PAD, "draft": "none"}
    ours, plain = generate(model, ids, mask, **options), generate(model.trunk, ids, mask, **options)
    assert torch.equal(ours.sequences, plain.sequences)
    assert torch.equal(ours.logprobs, plain.logprobs)


def test_logprobs_are_those_of_full_forwards(model_of, ragged):
    model = model_of("gpt_neox", "hydra", 4)
    ids, mask = ragged(4, 7, seed=5, right=True)
    output = generate(model, ids, mask, max_new_tokens=9, eos_token_id=EOS, pad_token_id=PAD)
    for row, length in enumerate(output.lengths.tolist()):
        text = torch.cat([ids[row][mask[row].bool()], output.sequences[row, 7 : 7 + length]])
        with torch.no_grad():
            log_policy = model.trunk(text[None]).logits[0].log_softmax(dim=-1)
        expected = log_policy[-length - 1 : -1].gather(1, text[-length:, None])[:, 0]
        torch.testing.assert_close(output.logprobs[row, :length], expected, atol=1e-10, rtol=0)
        assert bool((output.logprobs[row, length:] == 0).all())


def test_stop_sequences_end_a_row(model_of, ragged):
    model = model_of("llama", "latent", 4)
    ids, mask = ragged(3, 5, seed=6)
    free = new_tokens(generate(model, ids, mask, max_new_tokens=12, pad_token_id=PAD), 5)
    stop = free[0][3:5]
    stopped = new_tokens(generate(model, ids, mask, max_new_tokens=12, pad_token_id=PAD, stop_sequences=[stop]), 5)
    for whole, cut in zip(free, stopped, strict=True):
        ends = [n for n in range(2, 13) if whole[n - 2 : n] == stop]
        assert cut == (whole[: ends[0]] if ends else whole)


@pytest.mark.parametrize("draft", [{}, {"tree": (2, 2, 1)}, {"draft": "none"}], ids=str)
def test_the_caller_ends_texts(model_of, ragged, draft):
    """A row ends at the first token with which its new tokens add up to its own limit, inside a draft or not."""
    model = model_of("llama", "latent", 4)
    ids, mask = ragged(4, 6, seed=2)
    limits, asked = [9, 17, 30, 1000], []

    def is_over(row, tokens):
        asked.append(row)
        return sum(tokens) >= limits[row]

    output = generate(
        model, ids, mask, max_new_tokens=12, eos_token_id=EOS, pad_token_id=PAD, stop_when=is_over, **draft
    )
    expected = []
    for row, limit in zip(reference(model.trunk, ids, mask, 12), limits, strict=True):
        ends = [n for n in range(1, len(row) + 1) if sum(row[:n]) >= limit]
        expected.append(row[: ends[0]] if ends else row)
    assert new_tokens(output, 6) == expected
    assert {len(row) for row in expected} != {12}
    assert set(asked) == {0, 1, 2, 3}


@pytest.mark.parametrize("draft", [{}, {"tree": (2, 2, 1)}, {"draft": "lookup"}, {"three_phase": True}], ids=str)
def test_rounds_make_the_texts(model_of, ragged, draft):
    """What callers see of the rounds, row by row, is the output: tokens, log-probabilities, counts of drafts."""
    model = model_of("llama", "latent", 4)
    ids, mask = ragged(5, 7, seed=3)
    texts, logprobs = [list[int]() for _ in ids], [list[float]() for _ in ids]
    num_rounds, drafted, accepted = [-1] * len(ids), 0, 0  # the prompts' forward is no round

    def see(one, rows, num_kept):
        nonlocal drafted, accepted
        for place, (row, kept) in enumerate(zip(rows.tolist(), num_kept.tolist(), strict=True)):
            assert 1 <= kept <= one.counts[place] == one.num_accepted[place] + 1
            texts[row] += one.tokens[place, :kept].tolist()
            logprobs[row] += one.logprobs[place, :kept].tolist()
            num_rounds[row] += 1
        drafted += int(one.num_drafted.sum())
        accepted += int(one.num_accepted.sum())
        assert one.draft.num_drafts.tolist() == one.num_drafted.tolist()

    output = generate(model, ids, mask, max_new_tokens=11, eos_token_id=EOS, pad_token_id=PAD, on_round=see, **draft)
    assert texts == new_tokens(output, 7)
    assert num_rounds == output.num_rounds.tolist()
    assert (drafted, accepted) == (output.drafted_per_depth.sum(), output.accepted_per_depth.sum())
    for row, found in enumerate(logprobs):
        assert output.logprobs[row, : len(found)].tolist() == found


class Oracle:
    """Drafts what the model itself will say; for counting forwards where all drafts are accepted."""

    def __init__(self, text, num_prompt: int, max_drafts: int) -> None:
        self._text, self._num_prompt, self.max_drafts = text, num_prompt, max_drafts

    def start(self, texts, features): ...
    def observe(self, texts, features, num_new): ...
    def move_rows(self, sources, targets, num_left): ...

    def propose(self, texts, policy, num_drafts):
        from worldmtp.decoding.acceptance import Draft

        first = int(texts.num_cached[0]) + 1
        tokens = self._text[:, first : first + num_drafts]
        return Draft(tokens, torch.tensor([tokens.shape[1]]))


@pytest.mark.parametrize(("three_phase", "expected"), [(False, 12 // 4 + 1), (True, 2 * 12 // 4 + 1)])
def test_forwards_of_merged_and_three_phase_decoding(model_of, ragged, three_phase, expected):
    """12 tokens after the prompts' own, k = 4: m / k + 1 forwards merged, 2 m / k and the prompts' in three phases."""
    model = model_of("llama", "latent", 4)
    ids, mask = ragged(1, 6, seed=7)
    plain = generate(model, ids, mask, max_new_tokens=13, draft="none", pad_token_id=PAD)
    text = torch.cat([plain.sequences, plain.sequences[:, :8] * 0], dim=1)
    oracle = Oracle(text, 6, 3)
    output = generate(model, ids, mask, max_new_tokens=13, draft=oracle, three_phase=three_phase, pad_token_id=PAD)
    assert torch.equal(output.sequences, plain.sequences)
    assert output.num_trunk_forwards == expected
    assert plain.num_trunk_forwards == 13


@pytest.mark.parametrize("head", ["sequential", "eagle", "latent", "parallel"])
def test_three_phases_say_the_same(model_of, ragged, head):
    model = model_of("llama", head, 4)
    ids, mask = ragged(5, 8, seed=8)
    output = generate(model, ids, mask, max_new_tokens=13, eos_token_id=EOS, pad_token_id=PAD, three_phase=True)
    assert new_tokens(output, 8) == reference(model.trunk, ids, mask, 13)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("role", ["model", "drafting model"])
def test_a_plain_model_runs_in_evaluation_and_is_left_as_it_was(
    model_of, tiny_trunk, ragged, monkeypatch, global_rng_untouched, role, is_training
):
    plain = tiny_trunk("gpt2", vocab_size=7, num_layers=1, dtype=torch.float64).train(is_training)
    plain.transformer.ln_f.train(not is_training)  # a part may be in another mode than the whole
    modes, forward = list[set[bool]](), plain.transformer.forward

    def watched(*args, **kwargs):
        modes.append({module.training for module in plain.modules()})
        return forward(*args, **kwargs)

    monkeypatch.setattr(plain.transformer, "forward", watched)
    model, draft = (plain, "none") if role == "model" else (model_of(), plain)
    with global_rng_untouched():
        generate(model, *ragged(2, 4, seed=0), max_new_tokens=6, draft=draft)
    assert len(modes) > 2
    assert all(seen == {False} for seen in modes)
    assert plain.training == is_training
    assert plain.transformer.ln_f.training != is_training


def test_the_model_is_left_in_its_mode_and_the_cache_is_ours(model_of, ragged, monkeypatch):
    model = model_of("llama", "latent", 3).train()
    seen = []
    forward = model.base_model.forward

    def watched(*args, past_key_values: Cache, **kwargs):
        seen.append((type(past_key_values).__name__, model.training))
        return forward(*args, past_key_values=past_key_values, **kwargs)

    monkeypatch.setattr(model.base_model, "forward", watched)
    generate(model, *ragged(2, 4, seed=0), max_new_tokens=3, pad_token_id=PAD)
    assert set(seen) <= {("SlotCache", False)}
    assert model.training
    model.eval()
