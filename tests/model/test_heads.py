"""The sequential heads by themselves: their equation, their cache, what they are built of, and the registry."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, Gemma2Config, GPT2Config, GPT2LMHeadModel
from transformers.models.gemma2.modeling_gemma2 import Gemma2DecoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from worldmtp.heads import OutputLayers, ParallelHead, make_head, registry
from worldmtp.heads.block import resolve_head_block
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.model.trunk import additive_mask, causal_mask

EXACT = {"rtol": 0.0, "atol": 1e-10}


class FirstTokenHead(ParallelHead):
    """A parallel head for the tests: every depth scales the trunk's latent."""

    def __init__(self, config, trunk):
        super().__init__(config)
        self.output = OutputLayers(config, trunk, self.copies_lm_head)

    def forward_depth(self, depth, trunk_hidden, attention_mask, position_ids, cache=None):
        return trunk_hidden * depth


class NoHead(torch.nn.Module):
    """Of neither kind."""

    def __init__(self, config, trunk):
        super().__init__()


@pytest.fixture
def families(monkeypatch):
    """A registry that forgets what a test adds to it."""
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))


def test_a_layer_computes_its_equation(make_model):
    # Identity norms and block, so that the layer is its projection P [norm(E); norm(h)] alone.
    layer = make_model("llama", depth=2).heads.layers[0]
    layer.block = _Identity()
    with torch.no_grad():
        layer.projection.weight.zero_()
        layer.projection.weight[0, 0] = 1.0  # output 0 reads channel 0 of the embedding
        layer.projection.weight[1, 32 + 1] = 10.0  # output 1 reads channel 1 of the hidden state
        layer.embedding_norm.weight.fill_(3.0)
    embedding = torch.zeros((1, 1, 32), dtype=torch.float64)
    hidden = torch.zeros((1, 1, 32), dtype=torch.float64)
    embedding[0, 0, 0], hidden[0, 0, 1] = 5.0, -7.0
    bias, positions = torch.zeros((1, 1, 1, 1), dtype=torch.float64), torch.zeros((1, 1), dtype=torch.long)
    empty = torch.zeros(0, dtype=torch.float64)
    result = layer(hidden, embedding, bias, positions, (empty, empty), None)
    # One channel of 32 is not zero, so its root mean square is |x| / sqrt(32) and the norm makes it sign(x) sqrt(32).
    root = 32**0.5
    expected = torch.zeros((1, 1, 32), dtype=torch.float64)
    expected[0, 0, 0], expected[0, 0, 1] = 3.0 * root, -10.0 * root
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=0.0)


class _Identity(torch.nn.Module):
    def forward(self, hidden, **_):
        return hidden


def test_concat_order_swaps_the_halves_of_the_projection(make_model, tokens):
    first, second = (make_model("qwen3", concat_order=order) for order in ("embedding_first", "hidden_first"))
    expected = first.latents(tokens)
    assert not torch.allclose(second.latents(tokens)[1], expected[1])
    for layer in second.heads.layers:
        layer.projection.weight.data = layer.projection.weight.data.roll(32, dims=1)
    for ours, theirs in zip(second.latents(tokens), expected, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("num_first", [1, 4, 8])
@pytest.mark.parametrize("depth", [2, 3])
def test_a_cached_continuation_equals_the_full_pass(family, make_model, tokens, depth, num_first):
    model = make_model(family)
    attention_mask = torch.ones_like(tokens, dtype=torch.bool)
    attention_mask[0, :3] = False
    position_ids = (attention_mask.long().cumsum(dim=1) - 1).clamp_min(0)
    previous = model.latents(tokens, attention_mask)[depth - 2]
    embeds = model.embed(tokens.roll(1 - depth, dims=1))
    allowed = causal_mask(attention_mask)
    full = model.heads.forward_depth(depth, previous, embeds, allowed, position_ids)
    cache = DynamicCache()
    parts = []
    for span in (slice(0, num_first), slice(num_first, 9)):
        parts.append(
            model.heads.forward_depth(
                depth,
                previous[:, span],
                embeds[:, span],
                allowed[:, :, span, : span.stop],
                position_ids[:, span],
                cache=cache,
            )
        )
        assert cache.get_seq_length() == span.stop
    torch.testing.assert_close(torch.cat(parts, dim=1), full, **EXACT)
    assert len(cache.layers) == 1


def test_eager_and_sdpa_attention_agree(family, make_model, tokens):
    # Hugging Face's eager softmax is in single precision whatever the inputs are.
    attention_mask = torch.ones_like(tokens)
    attention_mask[1, 6:] = 0
    model = make_model(family)
    expected = model.latents(tokens, attention_mask)
    config = model.heads.layers[0].block.self_attn.config
    assert config._attn_implementation == "sdpa"
    config._attn_implementation = "eager"
    for ours, theirs in zip(model.latents(tokens, attention_mask), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-5)


def test_heads_of_an_eager_trunk_are_eager(make_model, tmp_path):
    make_model("llama").save_pretrained(tmp_path)
    model = MTPModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert model.trunk.config._attn_implementation == "eager"
    assert model.heads.layers[0].block.self_attn.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("family", "head_block", "layer_class"),
    [
        ("llama", "trunk", LlamaDecoderLayer),
        ("qwen3", "trunk", Qwen3DecoderLayer),
        ("gpt2", "llama", LlamaDecoderLayer),
        ("gpt_neox", "llama", LlamaDecoderLayer),
    ],
)
def test_the_block_is_the_trunks_where_it_serves(make_model, family, head_block, layer_class):
    model = make_model(family)
    assert model.config.head_block == head_block
    assert [type(layer.block) for layer in model.heads.layers] == [layer_class] * 3
    assert all(layer.block.self_attn.layer_idx == 0 for layer in model.heads.layers)


def test_a_llama_block_can_be_asked_for(make_model, tokens):
    model = make_model("qwen3", head_block="llama")
    assert type(model.heads.layers[0].block) is LlamaDecoderLayer
    assert model(tokens).depth_logits[3].isfinite().all()


def test_a_trunks_block_that_cannot_serve_is_refused(make_trunk):
    with pytest.raises(ValueError, match="needs decoder layers with Llama's interface, and those of GPT2LMHeadModel"):
        resolve_head_block("trunk", make_trunk("gpt2"))


def test_an_odd_number_of_channels_a_head_is_refused():
    config = GPT2Config(vocab_size=31, n_embd=9, n_layer=1, n_head=3, bos_token_id=1, eos_token_id=1)
    with pytest.raises(ValueError, match="hidden_size=9 over num_attention_heads=3 gives 3; choose another trunk"):
        MTPModel.from_trunk(GPT2LMHeadModel(config), MTPConfig(depth=2))


def test_layers_of_the_trunks_class_start_as_the_trunks_do():
    # Gemma's norms multiply by one plus their weight: at one, not zero, they would double what passes.
    config = Gemma2Config(
        vocab_size=31,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
    )
    model = MTPModel.from_trunk(AutoModelForCausalLM.from_config(config), MTPConfig(depth=2))
    assert model.config.head_block == "trunk"
    layer = model.heads.layers[0]
    assert type(layer.block) is Gemma2DecoderLayer
    assert not layer.block.input_layernorm.weight.any()
    assert not layer.hidden_norm.weight.any()  # Gemma's norms scale by one plus their weight
    assert model(torch.tensor([[3, 4, 5]])).depth_logits[1].isfinite().all()


def test_shared_depths_are_one_layer_applied_again(make_model, tokens):
    shared = make_model("llama", share_depths=True)
    assert len(shared.heads.layers) == 1
    assert shared.heads.depths == range(2, 5)
    separate = make_model("llama")
    for layer in separate.heads.layers:
        layer.load_state_dict(shared.heads.layers[0].state_dict())
    for ours, theirs in zip(shared.latents(tokens), separate.latents(tokens), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_the_first_layer_is_that_of_depth_two(make_model):
    heads = make_model("llama").heads
    assert [heads.set_of(depth, heads.layers) for depth in (2, 3, 4)] == list(heads.layers)


def test_masks():
    attention_mask = torch.tensor([[False, True, True, True]])
    allowed = causal_mask(attention_mask, torch.tensor([[0, 0, 1, 1]]))
    # Query 0 is padding and sees itself alone. Query 2 starts document 1. Query 3 sees 2 and itself.
    expected = torch.tensor(
        [
            [True, False, False, False],
            [False, True, False, False],
            [False, False, True, False],
            [False, False, True, True],
        ]
    )
    assert torch.equal(allowed[0, 0], expected)
    bias = additive_mask(torch.tensor([True, False]), torch.bfloat16)
    assert bias.dtype == torch.bfloat16
    assert bias[0] == 0.0
    assert bias[1] == torch.finfo(torch.bfloat16).min


@pytest.mark.usefixtures("families")
def test_a_registered_parallel_family_reads_the_trunk_at_every_depth(make_trunk, tokens):
    registry.register_head("first_token", f"{__name__}:FirstTokenHead")
    model = MTPModel.from_trunk(make_trunk("llama"), MTPConfig(head="first_token", depth=3))
    latents = model.latents(tokens)
    torch.testing.assert_close(latents[1], 2 * latents[0], **EXACT)
    torch.testing.assert_close(latents[2], 3 * latents[0], **EXACT)


@pytest.mark.usefixtures("families")
def test_what_the_registry_refuses(make_trunk):
    with pytest.raises(ValueError, match=r"entry_point='NoHead' must look like 'package\.module:Class'"):
        registry.register_head("none", "NoHead")
    with pytest.raises(ValueError, match=r"head 'sequential' is already registered as 'worldmtp\.heads\.sequential:"):
        registry.register_head("sequential", "elsewhere:Head")
    registry.register_head("sequential", "worldmtp.heads.sequential:SequentialHead")
    registry.register_head("none", f"{__name__}:NoHead")
    config = MTPConfig(head="none", depth=2)
    with pytest.raises(TypeError, match=r"head='none' is <class .*NoHead'>; subclass ActionConditionalHead"):
        make_head(config, make_trunk("llama"))


def test_listing_families_imports_no_torch():
    code = "import sys; from worldmtp.heads import available_heads; available_heads(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_the_lm_head_is_never_fed_a_bare_sum_of_residuals(make_model):
    with pytest.raises(ValueError, match="output_norm='none' with head='sequential': the LM head's"):
        make_model("llama", output_norm="none")
