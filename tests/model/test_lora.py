"""Adapters in the trunk: what they change, what stays frozen, what is written, and what they are merged into."""

import copy
import sys
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file

from worldmtp.heads import available_heads
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.model.lora import add_lora, has_lora, load_lora, load_lora_weights, merge_lora, save_lora


def test_fresh_adapters_change_nothing_and_follow_the_generator(
    family, make_model, tokens, global_rng_untouched, lora, outputs
):
    model = make_model(family)
    before = outputs(model, tokens)
    with global_rng_untouched():
        assert add_lora(model, lora(family), torch.Generator().manual_seed(4)) is model
    assert torch.equal(outputs(model, tokens), before)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    again, other = (
        add_lora(make_model(family), lora(family), torch.Generator().manual_seed(seed)).trunk.state_dict()
        for seed in (4, 5)
    )
    drawn = [name for name in again if "lora_A" in name]
    assert len(drawn) == 4  # two layers, two targets in each
    assert all(torch.equal(model.trunk.state_dict()[name], again[name]) for name in drawn)
    assert not any(torch.equal(other[name], again[name]) for name in drawn)


def test_an_adapter_adds_its_scaled_product(adapted, tokens, disturb):
    # By hand: W x + (6 / 3) B A x, on the layer itself.
    model = adapted()
    disturb(model)
    layer = model.trunk.model.layers[1].mlp.down_proj
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(layer(x), x @ (layer.base_layer.weight + 2 * b @ a).T, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("tied", [False, True])
def test_only_adapters_and_heads_get_a_gradient(family, adapted, tokens, tied, disturb):
    model = adapted(family, tied=tied)
    disturb(model)
    model(tokens, labels=tokens).loss.backward()
    for name, parameter in model.trunk.named_parameters():
        is_adapter = ".lora_A." in name or ".lora_B." in name
        assert parameter.requires_grad == is_adapter, name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == is_adapter, name
    assert all(parameter.grad is not None for parameter in model.heads.parameters())
    assert all(parameter.requires_grad for parameter in model.world_heads.parameters())


@pytest.mark.parametrize("head", available_heads())
def test_no_family_of_heads_gets_adapters(make_model, head, lora):
    names = list(make_model("llama", depth=3, head=head).heads.state_dict())
    model = add_lora(make_model("llama", depth=3, head=head), lora(target_modules="all-linear"))
    assert list(model.heads.state_dict()) == names
    assert not any("lora" in name for name in names)
    assert model.config.head_block == "trunk"  # so the heads' layers have the names that were adapted
    assert not has_adapters(model.get_output_embeddings())
    assert model.output_layer(1) is model.trunk.lm_head


def has_adapters(module):
    return any("lora" in name for name, _ in module.named_modules())


@pytest.mark.parametrize("head", available_heads())
def test_a_round_trip_is_exact(
    make_model, make_trunk, tokens, tmp_path, head, global_rng_untouched, lora, disturb, outputs
):
    model = add_lora(make_model("llama", depth=3, head=head), lora())
    disturb(model)
    save_lora(model, tmp_path / "new" / "folder")
    with global_rng_untouched():
        loaded = load_lora(make_trunk("llama"), tmp_path / "new" / "folder").eval()
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    torch.testing.assert_close(outputs(loaded, tokens), outputs(model, tokens), rtol=0, atol=1e-12)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in loaded.named_parameters() if parameter.requires_grad} == trained


@pytest.mark.parametrize("tied", [False, True])
def test_a_round_trip_of_every_trunk(family, adapted, make_trunk, tokens, tmp_path, tied, disturb):
    model = adapted(family, tied=tied, dtype=torch.bfloat16)
    disturb(model)
    save_lora(model, tmp_path)
    loaded = load_lora(make_trunk(family, tied, torch.bfloat16), tmp_path)
    assert loaded.dtype == torch.bfloat16
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_what_is_written_is_small_and_peft_reads_its_part(adapted, make_trunk, tokens, tmp_path, disturb):
    model = adapted()
    disturb(model)
    save_lora(model, tmp_path)
    written = {**load_file(tmp_path / "heads.safetensors"), **load_file(tmp_path / "adapter/adapter_model.safetensors")}
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    buffers = sum(value.numel() for name, value in model.named_buffers() if name in model.state_dict())
    assert sum(tensor.numel() for tensor in written.values()) == trained + buffers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's wrapper reads a name that transformers changed
        wrapped = peft.PeftModel.from_pretrained(make_trunk("llama"), str(tmp_path / "adapter"))
    torch.testing.assert_close(wrapped(tokens).logits, model(tokens).logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tied", [False, True])
def test_merged_weights_are_a_plain_model_of_the_same_outputs(
    family, adapted, make_model, tokens, tmp_path, tied, lora, disturb, outputs
):
    model = adapted(family, tied=tied)
    disturb(model)
    before = outputs(model, tokens)
    names = list(make_model(family, tied=tied, depth=3).state_dict())
    assert merge_lora(model) is model
    assert not has_lora(model)
    assert list(model.state_dict()) == names
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(outputs(model, tokens), before, rtol=0, atol=1e-12)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(outputs(MTPModel.from_pretrained(tmp_path), tokens), before, rtol=0, atol=1e-12)
    # And others may be added after.
    assert has_lora(add_lora(model, lora(family)))


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"use_dora": True}, {"init_lora_weights": False}])
def test_other_forms_of_lora_are_saved_and_merged_too(
    adapted, make_trunk, tokens, tmp_path, options, lora, disturb, outputs
):
    model = adapted(config=lora(**options))
    disturb(model)
    before = outputs(model, tokens)
    save_lora(model, tmp_path)
    torch.testing.assert_close(outputs(merge_lora(model), tokens), before, rtol=0, atol=1e-12)
    loaded = load_lora(make_trunk("llama"), tmp_path).eval()
    torch.testing.assert_close(outputs(loaded, tokens), before, rtol=0, atol=1e-12)


def test_a_gathered_state_is_what_is_written(adapted, make_trunk, tmp_path, disturb):
    model, other = adapted(), adapted()
    disturb(other)
    save_lora(model, tmp_path, other.state_dict())
    loaded, expected = load_lora(make_trunk("llama"), tmp_path).state_dict(), other.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], loaded[name])] == []


def test_adapters_may_come_before_the_heads(make_trunk, tokens, tmp_path, lora, disturb, outputs):
    trunk = make_trunk("qwen3")
    trunk.add_adapter(lora("qwen3"), adapter_name="mine")
    model = MTPModel.from_trunk(trunk, MTPConfig(depth=3), torch.Generator().manual_seed(1))
    assert has_lora(model)
    assert not has_adapters(model.heads)
    disturb(model)
    save_lora(model, tmp_path)
    loaded = load_lora(make_trunk("qwen3"), tmp_path).eval()
    torch.testing.assert_close(outputs(loaded, tokens), outputs(model, tokens), rtol=0, atol=1e-12)
    before = outputs(model, tokens)
    torch.testing.assert_close(outputs(merge_lora(model), tokens), before, rtol=0, atol=1e-12)


def test_a_deep_copy_is_a_model_of_its_own(adapted, tokens, disturb, outputs):
    model = adapted()
    reference = copy.deepcopy(model)
    before = outputs(reference, tokens)
    disturb(model)
    assert torch.equal(outputs(reference, tokens), before)
    assert not torch.equal(outputs(model, tokens), before)


def test_gradient_checkpointing_changes_no_gradient(adapted, tokens, disturb):
    gradients = []
    for enabled in (False, True):
        model = adapted().train()
        disturb(model)
        if enabled:
            model.activation_checkpointing_enable()
        model(tokens, labels=tokens).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert any("lora_A" in name for name in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.0, atol=1e-12)


def test_generation_uses_the_adapters(adapted, tokens, disturb):
    model = adapted()
    disturb(model)
    generated = model.generate(tokens, max_new_tokens=4, do_sample=False, eos_token_id=None)
    merged = merge_lora(model).generate(tokens, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(generated, merged)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("targets", "what"),
    [
        (["q_proj", "lm_head"], r"the LM head \(lm_head\)"),
        (["q_proj", "embed_tokens"], r"the embedding \(model\.embed_tokens\)"),
        (r".*(v_proj|lm_head)", r"the LM head \(lm_head\)"),
    ],
)
def test_what_the_heads_share_stays_plain(make_model, tokens, tied, targets, what, lora, outputs):
    model = make_model("llama", tied=tied)
    model.trunk.model.norm.requires_grad_(False)
    names, before = list(model.state_dict()), outputs(model, tokens)
    with pytest.raises(ValueError, match=f"puts an adapter on {what}.* name it in exclude_modules"):
        add_lora(model, lora(target_modules=targets))
    # nothing is left of the attempt
    assert not has_lora(model)
    assert list(model.state_dict()) == names
    assert torch.equal(outputs(model, tokens), before)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["trunk.model.norm.weight"]
    add_lora(model, lora(target_modules=["q_proj"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]\) is not supported: it would train whole"),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices=\[3\]\) is not supported: .*embedding"),
        ({"layer_replication": [(0, 2), (1, 2)]}, "it would change the number of the trunk's layers"),
        ({"target_parameters": ["q_proj.weight"]}, "weights outside of layers"),
        ({"alora_invocation_tokens": [1], "task_type": "CAUSAL_LM"}, "depends on the tokens of a call"),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights='pissa'\) is not supported: .*trunk's own weights"),
        ({"init_lora_weights": "olora"}, r"init_lora_weights='olora'\) is not supported"),
        ({"bias": "all"}, r"bias='all'\) would train the trunk's own biases"),
        ({"target_modules": ["nowhere"]}, r"\{'nowhere'\} not found in the base model"),
    ],
)
def test_configs_that_reach_further_are_refused(make_model, options, message, lora):
    model = make_model("llama")
    with pytest.raises(ValueError, match=message):
        add_lora(model, lora(**options))
    assert not has_lora(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_is_no_model_or_no_config_is_refused(make_model, make_trunk, adapted, lora):
    with pytest.raises(TypeError, match="model is a LlamaForCausalLM, expected an MTPModel"):
        add_lora(make_trunk("llama"), lora())
    with pytest.raises(TypeError, match=r"config is a dict, expected a peft\.LoraConfig"):
        add_lora(make_model("llama"), {"r": 3})
    with pytest.raises(ValueError, match=r"has adapters already; call merge_lora\(model\) first"):
        add_lora(adapted(), lora())


def test_without_adapters_there_is_nothing_to_save_or_merge(make_model, adapted, tmp_path, lora):
    with pytest.raises(ValueError, match=r"the adapters \[\], expected one; call add_lora\(model, config\)"):
        save_lora(make_model("llama"), tmp_path)
    with pytest.raises(ValueError, match=r"the adapters \[\], expected one"):
        merge_lora(make_model("llama"))
    several = adapted()
    with pytest.warns(UserWarning, match="multiple adapters in the model"):
        several.trunk.add_adapter(lora(), adapter_name="second")
    with pytest.raises(ValueError, match=r"\['default', 'second'\], expected one; delete the others"):
        save_lora(several, tmp_path)


def test_loading_tells_what_does_not_fit(adapted, make_model, make_trunk, tiny_trunk, tmp_path, lora):
    model = adapted()
    save_lora(model, tmp_path)
    with pytest.raises(ValueError, match=r"the trunk is not the one of .*: vocab_size=40, expected 31"):
        load_lora(tiny_trunk("llama", vocab_size=40), tmp_path)
    with pytest.raises(ValueError, match="model_type='qwen3', expected 'llama'"):
        load_lora(make_trunk("qwen3"), tmp_path)
    with pytest.raises(ValueError, match=r"shape: .*lora_A.*\(3, 32\), expected \(2, 32\)"):
        load_lora_weights(adapted(config=lora(r=2)), tmp_path)
    with pytest.raises(ValueError, match=r"20 problem.*missing: model\.layers\.0\.mlp\.gate_proj\.lora_A"):
        load_lora_weights(adapted(config=lora(target_modules="all-linear")), tmp_path)
    with pytest.raises(ValueError, match="missing: heads"):
        load_lora_weights(add_lora(make_model("llama", depth=4), lora()), tmp_path)
    (tmp_path / "heads.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"not a directory of save_lora: heads\.safetensors missing"):
        load_lora(make_trunk("llama"), tmp_path)


def test_a_directory_of_save_lora_is_no_checkpoint(adapted, tmp_path):
    save_lora(adapted(), tmp_path)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        MTPModel.from_pretrained(tmp_path)


def test_without_peft_the_extra_is_named(make_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'worldmtp\[lora\]'"):
        add_lora(make_model("llama"), object())


def test_adapters_are_not_exported_under_a_layouts_names(adapted, tmp_path):
    from worldmtp.interchange import export_checkpoint

    with pytest.raises(ValueError, match=r"it has adapters; call worldmtp\.model\.lora\.merge_lora\(model\) first"):
        export_checkpoint(adapted(), tmp_path / "out", "mimo")
    assert not (tmp_path / "out").exists()
