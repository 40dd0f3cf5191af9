"""What a backbone is called with, where a cache, padding and packed documents meet."""

import pytest
import torch
from transformers import MistralConfig, PreTrainedConfig

from worldmtp.model.trunk import LogitChanges, has_sliding_attention

EXACT = {"rtol": 0.0, "atol": 1e-10}


@pytest.mark.parametrize("left", [True, False])
def test_a_cached_step_continues_a_padded_row(family, make_model, tokens, left):
    model = make_model(family)
    mask = torch.ones_like(tokens)
    mask[0, : 3 if left else 0] = 0
    full = model(tokens, mask, compute_depth_logits=False).logits
    first = model(tokens[:, :6], mask[:, :6], compute_depth_logits=False, use_cache=True)
    second = model(tokens[:, 6:], mask, compute_depth_logits=False, past_key_values=first.past_key_values)
    torch.testing.assert_close(second.logits, full[:, 6:], **EXACT)


@pytest.mark.parametrize("shape", [(2, 1), (2, 8), (2, 10)])
@pytest.mark.parametrize("compute_depth_logits", [True, False])
def test_a_mask_of_another_length_is_refused_before_it_is_broadcast(make_model, tokens, shape, compute_depth_logits):
    expected = rf"attention_mask has shape \(2, {shape[1]}\), expected \(2, 9\): input_ids has shape \(2, 9\)\."
    with pytest.raises(ValueError, match=expected):
        make_model("llama")(tokens, torch.ones(shape), compute_depth_logits=compute_depth_logits)


def test_over_a_cache_the_mask_has_its_tokens_too(make_model, tokens):
    model = make_model("llama")
    cache = model(tokens[:, :6], compute_depth_logits=False, use_cache=True).past_key_values
    expected = r"attention_mask has shape \(2, 3\), expected \(2, 9\): input_ids has shape \(2, 3\) after 6 cached"
    with pytest.raises(ValueError, match=expected):
        model(tokens[:, 6:], torch.ones(2, 3), compute_depth_logits=False, past_key_values=cache)


def test_packed_documents_stay_apart_while_a_cache_is_filled(make_model, tokens):
    model = make_model("llama")
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]).expand(2, -1)
    packed = model(tokens, position_ids=positions, compute_depth_logits=False, use_cache=True).logits
    alone = model(tokens[:, 4:], compute_depth_logits=False).logits
    torch.testing.assert_close(packed[:, 4:], alone, **EXACT)


def test_a_window_is_seen_whichever_way_a_config_says_it():
    assert has_sliding_attention(MistralConfig(sliding_window=3))
    assert not has_sliding_attention(MistralConfig(sliding_window=None))
    named = PreTrainedConfig()
    named.layer_types = ["full_attention", "sliding_attention"]
    assert has_sliding_attention(named)
    named.layer_types = ["full_attention"]
    assert not has_sliding_attention(named)


@pytest.mark.parametrize(
    ("model_type", "fields", "expected"),
    [
        ("granite", {"logits_scaling": 4.0}, 0.5),
        ("hyperclovax", {"logits_scaling": 4.0}, 8.0),
        ("falcon_h1", {"lm_head_multiplier": 3.0}, 6.0),
        ("cohere", {"logit_scale": 0.25}, 0.5),
        ("llama", {}, 2.0),
    ],
)
def test_logits_are_scaled_as_the_trunk_does(model_type, fields, expected):
    config = PreTrainedConfig(**fields)
    config.model_type = model_type
    changes = LogitChanges.of(config)
    assert bool(changes) == bool(fields)
    assert changes(torch.tensor([2.0])).item() == expected
