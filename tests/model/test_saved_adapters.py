"""Models with adapters: checkpoints that load by themselves, and PEFT's wrapper, which comes off."""

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from worldmtp.model import MTPModel
from worldmtp.model.adapters import without_peft_wrapper
from worldmtp.model.config import MTPConfig
from worldmtp.model.lora import has_lora, merge_lora


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("load", [MTPModel.from_pretrained, AutoModelForCausalLM.from_pretrained])
def test_a_checkpoint_with_adapters_loads_by_itself(family, adapted, tokens, tmp_path, tied, load, disturb, outputs):
    model = adapted(family, tied=tied)
    disturb(model)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    ours, theirs = dict(model.named_parameters()), dict(loaded.named_parameters())
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert [name for name in ours if ours[name].requires_grad != theirs[name].requires_grad] == []
    assert has_lora(loaded)
    # Weights are equal to the bit; the products of adapters round by where they lie in memory.
    torch.testing.assert_close(outputs(loaded, tokens), outputs(model, tokens), rtol=0.0, atol=1e-12)


def test_a_checkpoint_of_merged_adapters_is_plain(adapted, tokens, tmp_path, disturb, outputs):
    model = adapted()
    disturb(model)
    model.save_pretrained(tmp_path / "adapters")
    merged = merge_lora(MTPModel.from_pretrained(tmp_path / "adapters"))
    assert merged.config.adapters is None
    merged.save_pretrained(tmp_path / "merged")
    loaded = MTPModel.from_pretrained(tmp_path / "merged")
    assert not has_lora(loaded)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    torch.testing.assert_close(outputs(loaded, tokens), outputs(model, tokens), rtol=1e-9, atol=1e-9)


def test_a_checkpoint_that_lacks_an_adapter_is_an_error(adapted, tmp_path):
    model = adapted()
    lost = "trunk.model.layers.1.mlp.down_proj.lora_B.default.weight"
    kept = {name: weight for name, weight in model.state_dict().items() if name != lost}
    model.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(ValueError, match=f"missing weights: {lost};"):
        MTPModel.from_pretrained(tmp_path)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute in the model")
def test_adapters_that_could_not_be_put_back_are_not_saved(adapted, make_model, tmp_path, lora):
    several = adapted()
    several.trunk.add_adapter(lora(), "other")
    with pytest.raises(ValueError, match=r"adapters \['default', 'other'\], expected one"):
        several.save_pretrained(tmp_path)
    other = make_model("llama")
    other.trunk.add_adapter(peft.IA3Config(target_modules=["down_proj"], feedforward_modules=["down_proj"]))
    with pytest.raises(TypeError, match=r"config is a IA3Config, expected a peft\.LoraConfig"):
        other.save_pretrained(tmp_path)
    wrapped = make_model("llama")
    peft.get_peft_model(wrapped, lora())
    with pytest.raises(ValueError, match=r"inside PEFT's wrapper, .* call save_pretrained of the wrapper"):
        wrapped.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_wrapper_comes_off_where_its_layers_are_all(make_trunk, make_model, tokens, lora):
    trunk = make_trunk("llama")
    wrapped = peft.get_peft_model(trunk, lora())
    assert without_peft_wrapper(wrapped) is trunk
    assert without_peft_wrapper(trunk) is trunk
    assert without_peft_wrapper("mtp") == "mtp"
    mixed = peft.get_peft_model(make_trunk("llama"), lora(), mixed=True)
    assert type(without_peft_wrapper(mixed)) is type(trunk)
    model = make_model("llama")
    assert without_peft_wrapper(peft.get_peft_model(model, lora())) is model


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "PROMPT_TUNING"),
        (peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "PREFIX_TUNING"),
        (
            peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=[3, 4]),
            "LORA",
        ),
    ],
    ids=["prompt", "prefix", "activated LoRA"],
)
def test_a_wrapper_that_does_more_than_its_layers_is_refused(make_trunk, config, kind):
    wrapped = peft.get_peft_model(make_trunk("llama"), config)
    with pytest.raises(ValueError, match=rf"PeftModelForCausalLM with {kind} does more than the layers inside it"):
        without_peft_wrapper(wrapped)


def test_a_wrapped_trunk_is_refused_with_the_way_to_heads(make_trunk, lora):
    wrapped = peft.get_peft_model(make_trunk("llama"), lora(task_type="CAUSAL_LM"))
    message = r"PEFT's wrapper PeftModelForCausalLM; .*add_lora\(MTPModel\.from_trunk\(lm, config\), lora_config\)"
    with pytest.raises(TypeError, match=message):
        MTPModel.from_trunk(wrapped, MTPConfig())
