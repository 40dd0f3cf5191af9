"""Checkpoints: bit-exact, tied or not, in any precision; and what from_trunk takes."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaModel

from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_is_bit_exact(family, make_model, tokens, tmp_path, tied, dtype):
    model = make_model(family, tied=tied, dtype=dtype, depth=3)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        # Nothing may stand at its initial value: loading would hide that it initialised again.
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((0.1 * noise).to(dtype))
    model.save_pretrained(tmp_path)
    loaded = MTPModel.from_pretrained(tmp_path).eval()
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name].dtype != theirs[name].dtype] == []
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert loaded.dtype == dtype
    assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) == tied
    # Weights to the bit, outputs to rounding: loaded weights lie elsewhere, and kernels round by alignment.
    rounding = {"rtol": 0.0, "atol": 64 * torch.finfo(dtype).eps}
    before, after = model(tokens), loaded(tokens)
    for one, other in zip(before.depth_logits, after.depth_logits, strict=True):
        torch.testing.assert_close(one, other, **rounding)
    latent = before.hidden_states[1]
    torch.testing.assert_close(
        model.world_heads(latent).value_logits, loaded.world_heads(latent).value_logits, **rounding
    )


def test_a_checkpoint_of_a_model_cast_after_it_was_made_keeps_its_precision(make_model, tmp_path):
    make_model("qwen3", dtype=torch.float32).double().save_pretrained(tmp_path)
    loaded = MTPModel.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float64}


def test_the_tied_weight_is_written_once(make_model, tmp_path):
    from safetensors import safe_open

    make_model("llama", tied=True).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert "trunk.model.embed_tokens.weight" in names
    assert "trunk.lm_head.weight" not in names


def test_auto_classes_load_the_model_with_its_heads(make_model, tmp_path):
    make_model("gpt2", depth=3).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, MTPModel)
    assert loaded.config.depth == 3


def test_a_plain_trunks_checkpoint_is_refused_with_the_way_out(family, make_trunk, tmp_path):
    trunk = make_trunk(family)
    trunk.save_pretrained(tmp_path)
    message = rf"plain '{family}' model without MTP heads; load it with AutoModelForCausalLM.*MTPModel\.from_trunk"
    with pytest.raises(ValueError, match=message):
        MTPModel.from_pretrained(tmp_path)


def test_a_config_without_a_trunk_is_refused():
    with pytest.raises(ValueError, match=r"MTPConfig has no trunk_config; use MTPModel\.from_trunk"):
        MTPModel(MTPConfig(depth=2))


def test_what_is_no_trunk_is_refused(make_model):
    with pytest.raises(TypeError, match=r"an MTPModel already; pass its \.trunk to replace the heads"):
        MTPModel.from_trunk(make_model("llama"), MTPConfig())
    backbone = LlamaModel(LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=31))
    with pytest.raises(TypeError, match="trunk is a LlamaModel; from_trunk needs a Hugging Face causal LM"):
        MTPModel.from_trunk(backbone, MTPConfig())
    with pytest.raises(TypeError, match="trunk is a Linear"):
        MTPModel.from_trunk(torch.nn.Linear(2, 2), MTPConfig())


def test_world_heads_that_a_checkpoint_lacks_are_not_drawn(make_model, tmp_path):
    model = make_model("llama")
    kept = {name: weight for name, weight in model.state_dict().items() if not name.startswith("world_heads.")}
    model.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(ValueError, match=r"missing weights: world_heads\."):
        MTPModel.from_pretrained(tmp_path)


def test_from_trunk_takes_the_trunk_as_it_is(family, make_trunk):
    trunk = make_trunk(family)
    # A layer that Hugging Face did not initialise is not initialised by us.
    replaced = torch.nn.Linear(32, 31, bias=False, dtype=torch.float64)
    trunk.set_output_embeddings(replaced)
    before = copy.deepcopy(trunk.state_dict())
    model = MTPModel.from_trunk(trunk, MTPConfig(depth=3))
    assert model.trunk is trunk
    assert all(torch.equal(before[name], weight) for name, weight in trunk.state_dict().items())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert not model.training
    assert model.base_model is trunk.base_model
    assert model.get_input_embeddings() is trunk.get_input_embeddings()
    assert model.get_output_embeddings() is trunk.get_output_embeddings()


def test_fresh_heads_follow_the_generator_and_nothing_else(make_trunk, global_rng_untouched):
    trunks = [make_trunk("llama") for _ in range(3)]
    config = MTPConfig(depth=3)
    with global_rng_untouched():
        same, again, other = (
            MTPModel.from_trunk(trunk, config, torch.Generator().manual_seed(seed)).heads.state_dict()
            for trunk, seed in zip(trunks, (7, 7, 8), strict=True)
        )
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert not torch.equal(same["layers.0.projection.weight"], other["layers.0.projection.weight"])
    # Two depths are two draws.
    assert not torch.equal(same["layers.0.projection.weight"], same["layers.1.projection.weight"])


def test_heads_start_small_with_norms_at_one_and_world_heads_at_zero(make_trunk):
    model = MTPModel.from_trunk(
        make_trunk("gpt2"), MTPConfig(depth=3, initializer_range=0.05), torch.Generator().manual_seed(9)
    )
    layer = model.heads.layers[1]
    # 2048 draws of a normal: the standard deviation is within five of its standard errors, 1 / sqrt(4096).
    assert abs(layer.projection.weight.std() / 0.05 - 1) < 5 / 4096**0.5
    assert torch.all(layer.embedding_norm.weight == 1)
    assert torch.all(layer.block.input_layernorm.weight == 1)
    assert not model.world_heads.value[-1].weight.any()
    assert model.world_heads.value[1].weight.any()


def test_generation_is_the_trunks(make_model, tokens, tmp_path):
    model = make_model("llama")
    model.generation_config.max_new_tokens = 5
    model.generation_config.eos_token_id = None
    model.save_pretrained(tmp_path)
    generated = model.generate(tokens, do_sample=False)
    row = tokens
    for _ in range(5):
        row = torch.cat([row, model.trunk(row).logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    assert torch.equal(generated, row)
    assert torch.equal(MTPModel.from_pretrained(tmp_path).generate(tokens, do_sample=False), row)


@pytest.mark.parametrize("from_file", [False, True])
def test_a_resized_vocabulary_is_saved(make_model, tokens, tmp_path, from_file):
    model = make_model("llama")
    if from_file:
        model.save_pretrained(tmp_path)
        model = MTPModel.from_pretrained(tmp_path)
    model.resize_token_embeddings(40, mean_resizing=False)
    assert model.config.vocab_size == model.trunk.config.vocab_size == 40
    model.save_pretrained(tmp_path)
    loaded = MTPModel.from_pretrained(tmp_path)
    assert loaded(tokens).depth_logits[3].shape == (2, 9, 40)


def test_gradient_checkpointing_changes_no_gradient(make_model, tokens):
    gradients = []
    for enabled in (False, True):
        model = make_model("llama").train()
        if enabled:
            model.activation_checkpointing_enable()
            assert model.heads.layers[0].block.gradient_checkpointing
        model(tokens, labels=tokens).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.0, atol=1e-12)
