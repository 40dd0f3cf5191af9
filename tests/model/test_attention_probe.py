"""Attention maps of selected queries: those of transformers' eager attention, whatever runs the trunk."""

import copy

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, BloomConfig, Gemma2Config, MistralConfig

from worldmtp.model.attention_probe import attention_maps
from worldmtp.model.lora import add_lora

TOLERANCE = 1e-6  # eager softmax of Llama and Qwen is in float32, whatever the trunk's dtype
QUERIES = torch.tensor([[8, 3, 5], [4, 8, 7]])


def eager_maps(trunk, tokens, queries, mask=None):
    """The same of ``output_attentions``, from a copy of the trunk."""
    slow = type(trunk)(copy.deepcopy(trunk.config)).to(trunk.dtype).eval()
    slow.load_state_dict(trunk.state_dict())
    slow.set_attn_implementation("eager")
    positions = None if mask is None else (mask.cumsum(dim=1) - 1).clamp_min(0)
    with torch.no_grad():
        layers = slow(tokens, attention_mask=mask, position_ids=positions, output_attentions=True).attentions
    assert len(layers) == trunk.config.num_hidden_layers  # else the reference is empty, too
    whole = torch.stack(layers, dim=1)
    rows = torch.arange(len(tokens))[:, None]
    return whole[rows, :, :, queries].permute(0, 2, 3, 1, 4)


def test_maps_equal_eager_attention(make_trunk, family, tokens):
    trunk = make_trunk(family)
    found = attention_maps(trunk, tokens, QUERIES)
    assert found.shape == (2, 2, 4, 3, 9)
    torch.testing.assert_close(found, eager_maps(trunk, tokens, QUERIES), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_key(make_trunk, family, tokens, side):
    trunk = make_trunk(family, dtype=torch.float32)  # eager attention of padding on the left is NaN in float64
    mask = torch.ones_like(tokens)
    padding = slice(0, 3) if side == "left" else slice(6, 9)
    mask[1, padding] = 0
    queries = torch.tensor([[8, 3], [5, 4]])
    found = attention_maps(trunk, tokens, queries, mask)
    torch.testing.assert_close(found, eager_maps(trunk, tokens, queries, mask), rtol=0, atol=TOLERANCE)
    assert (found[1, :, :, :, padding] == 0).all()


def test_weights_add_up_to_one_and_look_at_nothing_later(make_trunk, family, tokens):
    found = attention_maps(make_trunk(family), tokens, QUERIES)
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(2, 2, 4, 3, dtype=torch.float64), rtol=0, atol=1e-12)
    later = torch.arange(9) > QUERIES[:, :, None]
    assert (found.permute(1, 2, 0, 3, 4)[:, :, later] == 0).all()


def test_window_of_sliding_attention_is_kept(tokens):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MistralConfig(vocab_size=31, num_hidden_layers=2, sliding_window=3, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    found = attention_maps(trunk, tokens, QUERIES)
    torch.testing.assert_close(found, eager_maps(trunk, tokens, QUERIES), rtol=0, atol=TOLERANCE)
    assert (found[0, :, :, 0, :6] == 0).all()
    assert (found[0, :, :, 0, 6:] > 0).all()


def test_trunk_is_left_as_it_was(make_trunk, family, tokens):
    trunk = make_trunk(family)
    before = trunk(tokens).logits
    attention_maps(trunk, tokens, QUERIES)
    assert trunk.config._attn_implementation == "sdpa"
    assert torch.equal(trunk(tokens).logits, before)
    with pytest.raises(ValueError, match="queries run from"):
        attention_maps(trunk, tokens, QUERIES + 6)
    assert trunk.config._attn_implementation == "sdpa"


def test_back_end_is_put_back_after_a_failure(make_trunk, tokens):
    trunk = make_trunk("llama")
    with pytest.raises(ValueError, match="attention_mask has shape"):
        attention_maps(trunk, tokens, QUERIES, torch.ones(2, 5))
    assert trunk.config._attn_implementation == "sdpa"


def test_only_the_queries_are_computed(make_trunk, tokens):
    trunk = make_trunk("llama")
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if function.overloadpacket is torch.ops.aten._softmax:
                largest = max(largest, out.numel())
            return out

    with Watch():
        attention_maps(trunk, tokens[:1], torch.tensor([[8]]))
    assert largest == 4 * 9  # heads x keys of one query


def test_adapters_are_seen(make_model, tokens):
    model = make_model("llama").eval()
    before = attention_maps(model.trunk, tokens, QUERIES)
    add_lora(model, LoraConfig(r=2, target_modules=["q_proj"]), torch.Generator().manual_seed(3))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.3)
    model.eval()
    assert not torch.allclose(attention_maps(model.trunk, tokens, QUERIES), before)


def test_training_mode_is_refused(make_trunk, tokens):
    with pytest.raises(ValueError, match=r"call its eval\(\) first"):
        attention_maps(make_trunk("llama").train(), tokens, QUERIES)


def test_architecture_without_the_interface_is_refused(tokens):
    config = BloomConfig(vocab_size=31, hidden_size=16, n_layer=2, n_head=4)
    trunk = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(RuntimeError, match="has shown the attention of 0 of its 2 layers"):
        attention_maps(trunk, tokens, QUERIES)


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "recurrent_gemma"])
def test_a_trunk_that_keeps_no_cache_of_keys_is_refused_as_any_other(tokens, kind):
    """What their backbones return has no ``past_key_values``."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "state_size": 8, "vocab_size": 31}
    heads = {"num_heads": 4, "head_dim": 16, "num_attention_heads": 4, "num_blocks": 2, "attention_hidden_size": 32}
    config = AutoConfig.for_model(kind, **sizes, **heads, n_groups=1, lru_width=32, pad_token_id=0)
    with torch.random.fork_rng(devices=[]):
        trunk = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with pytest.raises(RuntimeError, match="has shown the attention of 0 of its 2 layers: the others have none"):
        attention_maps(trunk, tokens, QUERIES)


def test_scores_that_are_capped_are_refused(tokens):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Gemma2Config(vocab_size=31, num_hidden_layers=2, head_dim=4, pad_token_id=0, **sizes)
    trunk = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match="changes its attention by softcap"):
        attention_maps(trunk, tokens, QUERIES)


def test_back_end_serves_nobody_else(make_trunk, tokens):
    trunk = make_trunk("llama")
    trunk.config._attn_implementation = "worldmtp_probe"
    with pytest.raises(RuntimeError, match="serves attention_maps alone"):
        trunk(tokens)
