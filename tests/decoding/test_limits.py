"""Bad input is refused before anything runs, and the message says what to do."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Mamba2Config

from worldmtp.decoding import AdaptiveLength, DecodingSession, SamplingConfig, generate, parallel_beam
from worldmtp.decoding.cache import SlotCache
from worldmtp.decoding.drafts import LookupDraft, NoDraft, make_drafter
from worldmtp.decoding.explain import explain
from worldmtp.decoding.lean import make_runner
from worldmtp.decoding.limits import cache_size
from worldmtp.decoding.sampling import DecodingPolicy

IDS = torch.tensor([[2, 3, 4], [5, 6, 2]])


def run(model, ids=IDS, mask=None, **settings):
    mask = torch.ones_like(ids) if mask is None else mask
    return generate(model, ids, mask, **({"max_new_tokens": 4} | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ids": torch.zeros((0, 3), dtype=torch.long)}, r"input_ids has shape \(0, 3\); pass at least one row"),
        ({"ids": torch.tensor([[2, 7]])}, r"input_ids lie in 2 \.\. 7, the vocabulary in 0 \.\. 6"),
        ({"ids": torch.tensor([[-1, 3]])}, r"input_ids lie in -1 \.\. 3"),
        ({"mask": torch.tensor([[1, 1, 1], [0, 0, 0]])}, r"rows \[1\] of the prompts are all padding"),
        ({"max_new_tokens": 126}, r"a prompt of 3 tokens and max_new_tokens=126 exceed the trunk's context of 128"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"draft": "mpt"}, r"draft='mpt' is unknown; did you mean 'mtp'\? choose from"),
        ({"num_draft": 4}, r"num_draft=4, but heads of depth=4 draft 1 to 3 tokens"),
        ({"num_draft": 0}, "num_draft=0, but heads of depth=4 draft 1 to 3 tokens"),
        ({"tree": (2, 0)}, r"widths=\(2, 0\) must be counts of at least 1"),
        ({"tree": (2, 2), "draft": "lookup"}, r"tree=\[2, 2\] is drafted by heads; use draft='mtp'"),
        ({"draft": "lookup", "num_draft": 0}, "num_draft=0 must be at least 1; for none use draft='none'"),
        ({"temperature": -1.0}, r"temperature=-1\.0 must be positive"),
        ({"eos_token_id": -3}, "token id -3 ends texts and is negative"),
        ({"eos_token_id": [1, 7]}, r"token id 7 is to end texts and lies outside the vocabulary, 0 \.\. 6"),
        ({"stop_sequences": [[2, 99]]}, r"token id 99 is to end texts and lies outside the vocabulary"),
        ({"stop_sequences": [[2], []]}, "stop_sequences has an empty one"),
        ({"num_draft": 2, "tree": (3, 2)}, r"num_draft=2 beside tree=\[3, 2\]: it has a number of candidates"),
        ({"num_draft": 2, "draft": "none"}, "num_draft=2 beside draft='none': nothing is drafted; leave num_draft out"),
        ({"num_draft": "auto", "draft": "none"}, "num_draft='auto' chooses a length and draft='none' drafts nothing"),
        ({"num_draft": 2, "draft": LookupDraft(3)}, "num_draft=2 beside a drafter, which has its length"),
    ],
)
def test_refused(model_of, settings, message):
    with pytest.raises(ValueError, match=message):
        run(model_of(head="sequential", depth=4), **settings)


@pytest.mark.parametrize("shape", [(1, 3), (2, 2), (2, 1), (2, 4), (3, 3), (2, 3, 1), (2, 1, 3, 3), (3,)], ids=str)
@pytest.mark.parametrize("decode", [generate, parallel_beam])
def test_a_mask_of_another_shape_is_refused_before_it_is_broadcast(model_of, decode, shape):
    options = {"widths": (2,)} if decode is parallel_beam else {}
    wrong = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
    with pytest.raises(ValueError, match=rf"attention_mask has shape \({wrong}\) and input_ids \(2, 3\); give every"):
        decode(model_of(head="latent"), IDS, torch.ones(shape), max_new_tokens=3, **options)


@pytest.mark.parametrize(
    "mask",
    [
        torch.tensor([[0.0, 0.0, 0.0], [-torch.inf, 0.0, 0.0]]),  # as it is added to attention scores
        torch.tensor([[1.0, 1.0, 0.5], [1.0, 1.0, 1.0]]),
        torch.tensor([[1, 1, 2], [1, 1, 1]]),
        torch.tensor([[1.0, 1.0, torch.nan], [1.0, 1.0, 1.0]]),
    ],
    ids=["additive", "a half", "two", "nan"],
)
@pytest.mark.parametrize("decode", [generate, parallel_beam])
def test_a_mask_with_other_values_is_refused(model_of, decode, mask):
    options = {"widths": (2,)} if decode is parallel_beam else {}
    with pytest.raises(ValueError, match=r"attention_mask has values from .* to .*; expected 0 for padding and 1 for"):
        decode(model_of(head="latent"), IDS, mask, max_new_tokens=3, **options)


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int32, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("decode", [generate, parallel_beam])
def test_ids_and_masks_of_any_kind_say_the_same(model_of, decode, kind):
    model, ids, mask = model_of(head="latent"), torch.tensor([[2, 3, 4], [0, 6, 2]]), torch.tensor([[1] * 3, [0, 1, 1]])
    # A beam of one candidate is greedy; transformers' own greedy text is what both are held to.
    options = {"widths": (1,)} if decode is parallel_beam else {}
    found = decode(model, ids.int(), mask.to(kind), max_new_tokens=4, **options)
    expected = model.trunk.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert found.sequences.tolist() == expected.tolist()
    assert found.sequences.dtype == torch.long


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([2, 3]), r"input_ids has shape \(2,\), expected \(rows, tokens\): pad shorter prompts"),
        (torch.ones(1, 2, 3, dtype=torch.long), r"input_ids has shape \(1, 2, 3\), expected \(rows, tokens\)"),
        (torch.ones(2, 3), r"input_ids are of dtype torch\.float32; pass token ids as whole numbers"),
        (torch.ones(2, 3, dtype=torch.bool), r"input_ids are of dtype torch\.bool; pass token ids as whole numbers"),
    ],
    ids=["a row", "three axes", "floats", "bools"],
)
def test_ids_that_are_no_rows_of_whole_numbers(model_of, ids, message):
    with pytest.raises(ValueError, match=message):
        run(model_of(), ids)


def test_explain_takes_one_prompt(model_of):
    with pytest.raises(ValueError, match=r"prompt has shape \(2, 3\), expected \(tokens,\): one prompt"):
        explain(model_of(), IDS, max_new_tokens=2)


@pytest.mark.parametrize(
    ("mask", "what"),
    [(torch.ones(1, 3, dtype=torch.bool), r"\(1, 3\) and dtype torch.bool"), (torch.ones(2, 3), r"torch.float32")],
    ids=["shape", "kind"],
)
def test_a_session_has_the_same_border(model_of, mask, what):
    model = model_of()
    policy = DecodingPolicy(SamplingConfig(), None)
    session = DecodingSession(model, make_runner(model), NoDraft(), policy, 8)
    with pytest.raises(ValueError, match=rf"attention_mask has shape .*{what}, expected \(2, 3\), as input_ids"):
        session.prefill(IDS, mask)


def test_integers_of_any_kind_are_taken(model_of):
    model = model_of(head="latent")
    plain = run(model, max_new_tokens=9, eos_token_id=1, stop_sequences=[[3, 4]], num_draft=2)
    other = run(
        model,
        max_new_tokens=np.int32(9),
        eos_token_id=torch.tensor(1),
        pad_token_id=np.int64(0),
        stop_sequences=torch.tensor([[3, 4]]),
        num_draft=np.int64(2),
    )
    assert other.sequences.tolist() == plain.sequences.tolist()
    assert other.drafted_per_depth.tolist() == plain.drafted_per_depth.tolist()
    beams = [
        parallel_beam(model, IDS, widths=widths, num_beams=number, max_new_tokens=5, eos_token_id=ends)
        for widths, number, ends in [((2, 2), 2, [1, 2]), (np.array([2, 2]).tolist(), np.int64(2), np.array([1, 2]))]
    ]
    assert beams[0].sequences.tolist() == beams[1].sequences.tolist()


def test_what_is_no_drafter(model_of):
    with pytest.raises(TypeError, match=r"draft is a Linear, expected one of \['mtp', 'lookup', 'none'\], a Hugging"):
        make_drafter(model_of(), torch.nn.Linear(2, 2), None, None)
    assert make_drafter(model_of(), "lookup", None, None).max_drafts == 4
    # A chooser beside a drafter is what the command line passes.
    run(model_of(), draft=LookupDraft(3), num_draft=AdaptiveLength())


def test_unmarked_padding_is_not_guessed(model_of):
    ids = torch.tensor([[1, 2, 3], [2, 3, 4]])
    with pytest.raises(ValueError, match=r"begin or end with pad_token_id=1 and there is no attention_mask"):
        generate(model_of(), ids, max_new_tokens=2, pad_token_id=1, eos_token_id=1)
    assert generate(model_of(), ids, max_new_tokens=2, pad_token_id=0).sequences.shape == (2, 5)


def test_heads_that_are_none_or_leap_do_not_draft(model_of):
    with pytest.raises(ValueError, match="the model has depth=1, so no heads to draft with; use draft='none'"):
        run(model_of(depth=1))
    with pytest.raises(ValueError, match="the model has depth=1"):
        run(model_of().trunk)
    with pytest.raises(ValueError, match="stride=2: these heads leap over tokens"):
        run(model_of(head="linear", stride=2))


def test_a_drafting_model_of_another_vocabulary(model_of, tiny_trunk):
    small = tiny_trunk("llama", vocab_size=9, num_layers=1, dtype=torch.float64)
    with pytest.raises(ValueError, match="the drafting model has 9 tokens and the model 7"):
        run(model_of(), draft=small)


def test_a_cache_that_does_not_fit_is_a_sum(model_of):
    # Llama of the tests: 2 layers, 2 key-value heads of 8; 2 rows of 3 + 4 tokens and 3 drafts, in float64.
    size = 2 * 2 * 10 * 2 * 2 * 8 * 8
    with pytest.raises(
        MemoryError,
        match=r"the cache takes 2 x 2 rows x 10 slots x 2 layers x 2 key-value heads x 8 numbers x 8 bytes = 0\.0 MiB, "
        r"and 0\.0 MiB are allowed by max_cache_bytes; decode fewer rows",
    ):
        run(model_of(depth=4), max_cache_bytes=size - 1)
    run(model_of(depth=4), max_cache_bytes=size)
    assert cache_size(model_of().trunk.config, 2, 10, torch.float64).num_bytes == size


def test_copies_of_weights_count_where_memory_is_the_bound(model_of, monkeypatch):
    # A layer's matrices: 32 x (32 + 16 + 16 + 32) of attention and 3 x 32 x 48 of the MLP, twice, in float64.
    model, ids = model_of(depth=4), IDS
    width, inner = model.trunk.config.hidden_size, model.trunk.config.intermediate_size
    copies = 2 * 8 * (width * 3 * width + 3 * width * inner)
    cache = 2 * 2 * 10 * 2 * 2 * 8 * 8
    monkeypatch.setattr("worldmtp.decoding.limits.free_memory", lambda device: cache + copies - 1)
    with pytest.raises(MemoryError, match=r"copies of the weights 0\.\d MiB, and 0\.\d MiB are free"):
        run(model, ids)
    monkeypatch.setattr("worldmtp.decoding.limits.free_memory", lambda device: cache + copies)
    run(model, ids)


def test_more_slots_than_there_are():
    with pytest.raises(ValueError, match="slot 5 was asked for and rows have 5"):
        SlotCache(1, 5).write_at(torch.tensor([[5]]), 6)


def test_a_cache_read_before_it_is_written():
    with pytest.raises(RuntimeError, match="this cache is empty; run a prompt first"):
        SlotCache(1, 5).move_rows(torch.tensor([0]), torch.tensor([1]))


def test_a_trunk_whose_state_cannot_be_taken_back():
    config = Mamba2Config(
        vocab_size=7, hidden_size=16, num_hidden_layers=1, num_heads=2, head_dim=16, state_size=4, n_groups=1, expand=2
    )
    with torch.random.fork_rng():
        trunk = AutoModelForCausalLM.from_config(config)
    with pytest.raises(TypeError, match="decoding takes rejected drafts back"):
        run(trunk, draft="none")


def test_a_tree_wider_than_the_vocabulary(model_of):
    with pytest.raises(ValueError, match=r"widths=\(8, 2\) ask for 8 tokens of a vocabulary of 7; lower them"):
        generate(model_of(), torch.tensor([[2, 3]]), max_new_tokens=2, tree=(8, 2))


def test_look_ups_of_more_tokens_than_a_text_has(model_of):
    model = model_of()
    ids = torch.tensor([[2, 3]])
    plain = generate(model, ids, max_new_tokens=6, draft="none")
    found = generate(model, ids, max_new_tokens=6, draft=LookupDraft(2, max_ngram=9))
    assert torch.equal(found.sequences, plain.sequences)
