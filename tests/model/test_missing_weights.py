"""A checkpoint that lacks weights is refused by their names; nothing is drawn in their place."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from worldmtp import MTPConfig, MTPModel
from worldmtp.training.saved_model import load_any_model, load_model


def saved(directory, tied):
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        trunk = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=8,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=8,
                tie_word_embeddings=tied,
            )
        )
    model = MTPModel.from_trunk(trunk, MTPConfig(depth=3), torch.Generator().manual_seed(0))
    model.save_pretrained(directory)
    return model


def without(directory, *fragments):
    """Take the weights whose names have one of the fragments out of the file; their names."""
    file = directory / "model.safetensors"
    weights = load_file(file)
    gone = [name for name in weights if any(fragment in name for fragment in fragments)]
    save_file({name: value for name, value in weights.items() if name not in gone}, file, metadata={"format": "pt"})
    return gone


@pytest.mark.parametrize(
    "fragment", ["trunk.lm_head", "embed_tokens", "q_proj", "heads.layers.0.block.mlp", "world_heads"]
)
def test_missing_weights_are_named(tmp_path, fragment):
    saved(tmp_path, tied=False)
    gone = without(tmp_path, fragment)
    assert gone
    with pytest.raises(ValueError, match=r"does not hold this model: missing weights: ") as refused:
        MTPModel.from_pretrained(tmp_path)
    assert sorted(gone)[0] in str(refused.value)


def test_many_missing_weights_are_counted(tmp_path):
    saved(tmp_path, tied=False)
    gone = without(tmp_path, "heads.")
    with pytest.raises(ValueError, match=rf"and {len(gone) - 5} more; weights of another shape: none"):
        MTPModel.from_pretrained(tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path):
    saved(tmp_path, tied=False)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights["trunk.lm_head.weight"] = weights["trunk.lm_head.weight"][:4].clone()
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing weights: none; weights of another shape: trunk\.lm_head\.weight"):
        MTPModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_whole_loads(tmp_path, tied):
    model = saved(tmp_path, tied)
    loaded, info = MTPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert "missing_keys" in info
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(tokens).logits, model.eval()(tokens).logits)


@pytest.mark.parametrize("load", [AutoModelForCausalLM.from_pretrained, load_any_model, load_model])
def test_every_way_to_load_a_model_names_them(tmp_path, load):
    saved(tmp_path, tied=False)
    without(tmp_path, "trunk.lm_head")
    with pytest.raises(ValueError, match=r"missing weights: trunk\.lm_head\.weight; weights of another shape: none"):
        load(tmp_path)


@pytest.mark.parametrize("kept", ["trunk.lm_head.weight", "trunk.model.embed_tokens.weight"])
def test_either_name_of_a_tied_pair_is_enough(tmp_path, kept):
    model, file = saved(tmp_path, tied=True), tmp_path / "model.safetensors"
    pair = {"trunk.lm_head.weight", "trunk.model.embed_tokens.weight"}
    weights = {name: value for name, value in load_file(file).items() if name not in pair}
    embedding = model.get_input_embeddings().weight.detach().clone()
    save_file(weights | {kept: embedding}, file, metadata={"format": "pt"})
    loaded = MTPModel.from_pretrained(tmp_path)
    assert loaded.trunk.lm_head.weight is loaded.trunk.model.embed_tokens.weight
    assert torch.equal(loaded.trunk.lm_head.weight, embedding)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing weights: .*trunk\.model\.embed_tokens\.weight"):
        MTPModel.from_pretrained(tmp_path)
