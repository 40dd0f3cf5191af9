"""Bad input is refused before anything runs, and the message says what to do."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Mamba2Config

from worldmtp.decoding import generate, parallel_beam
from worldmtp.decoding.drafts import LookupDraft
from worldmtp.decoding.slot_cache import SlotCache, cache_size

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
        ({"draft": "lookup", "num_draft": 0}, "max_drafts=0 must be at least 1"),
        ({"temperature": -1.0}, r"temperature=-1\.0 must be positive"),
        ({"eos_token_id": -3}, "token id -3 ends texts and is negative"),
    ],
)
def test_refused(model_of, settings, message):
    with pytest.raises(ValueError, match=message):
        run(model_of(head="sequential", depth=4), **settings)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(1, 3), r"attention_mask has shape \(1, 3\) and input_ids \(2, 3\); give every token"),
        (torch.ones(2, 2), r"attention_mask has shape \(2, 2\) and input_ids \(2, 3\)"),
        (torch.ones(3, 3), r"attention_mask has shape \(3, 3\) and input_ids \(2, 3\)"),
        (torch.ones(2), r"attention_mask has shape \(2,\) and input_ids \(2, 3\)"),
        (torch.full((2, 3), 0.3), r"values from 0\.3.* to 0\.3.*; expected 0 for padding and 1 for tokens"),
        (torch.tensor([[0.0, -1e9, 0.0]] * 2), r"values from -1000000000\.0 to 0\.0; expected 0 for padding"),
    ],
)
def test_masks_that_are_none(model_of, mask, message):
    """One of another shape gave every row the first row's text, or dropped the end of the prompts."""
    with pytest.raises(ValueError, match=message):
        run(model_of(head="sequential", depth=2), mask=mask)
    with pytest.raises(ValueError, match=message):
        parallel_beam(model_of(head="medusa", depth=2), IDS, mask, widths=(2, 2), max_new_tokens=3, num_beams=2)


def test_ids_and_masks_of_any_whole_numbers(model_of):
    model = model_of(head="sequential", depth=2)
    expected = run(model).sequences
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(run(model, ids=IDS.to(dtype)).sequences, expected)
    for dtype in (torch.bool, torch.int32, torch.float32):
        assert torch.equal(run(model, mask=torch.ones_like(IDS).to(dtype)).sequences, expected)
    with pytest.raises(ValueError, match=r"input_ids are of dtype torch\.float32; pass token ids as whole numbers"):
        run(model, ids=IDS.float())


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
