"""Published checkpoints where a saved MTPModel was expected: the heads are named, and the command line takes them."""

import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from worldmtp.cli import generate as script
from worldmtp.envs import CharTokenizer
from worldmtp.interchange import import_checkpoint
from worldmtp.interchange.importing import layout_with_heads
from worldmtp.model import MTPModel
from worldmtp.training.saved_model import load_any_model

LAYOUTS = ("deepseek_v3", "glm4_moe", "qwen3_next", "qwen3_5", "mimo")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_from_pretrained_names_what_reads_the_heads(publish, layout):
    published = publish(layout)
    message = rf"releases have MTP heads in the layout '{layout}'; load both with .*import_checkpoint\(path\)"
    with pytest.raises(ValueError, match=message):
        MTPModel.from_pretrained(published.path)


def test_an_export_that_transformers_takes_for_a_plain_trunk_is_known_too(publish):
    published = publish("mimo")
    published.edit_config(model_type="qwen2")  # as export_checkpoint writes it, with the architecture's name
    with pytest.raises(ValueError, match="is a 'qwen2' model, whose releases have MTP heads in the layout 'mimo'"):
        MTPModel.from_pretrained(published.path)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "mimo"])
def test_the_command_line_takes_the_heads(publish, input_ids, layout, global_rng_untouched):
    published = publish(layout)
    with global_rng_untouched():
        model = load_any_model(published.path)
    assert isinstance(model, MTPModel)
    assert not model.training
    with torch.no_grad():
        logits = model(input_ids).depth_logits[1][:, :-1]
    torch.testing.assert_close(logits, published.head_logits(input_ids)[0], atol=1e-5, rtol=1e-4)


def test_the_command_line_says_what_it_cannot_tell(publish):
    path = publish("mimo").path
    message = r"layout 'mimo', whose hidden_stage cannot be told .*import_checkpoint\(path, hidden_stage=\.\.\.\)"
    with pytest.raises(ValueError, match=message):
        load_any_model(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_trunk_without_heads_is_a_plain_model(make_tiny, tmp_path, layout):
    trunk = make_tiny(layout)
    trunk.save_pretrained(tmp_path)
    assert layout_with_heads(tmp_path) is None
    assert type(load_any_model(tmp_path)) is type(trunk)


def test_heads_are_seen_in_shards(publish, tmp_path):
    published = publish("glm4_moe")
    published.trunk.save_pretrained(tmp_path / "shards", max_shard_size="50kB")
    assert layout_with_heads(published.path).name == "glm4_moe"
    assert layout_with_heads(tmp_path / "shards") is None
    assert layout_with_heads(tmp_path) is None


def test_texts_are_drafted_by_the_heads_of_the_release(publish, monkeypatch, capsys):
    published = publish("glm4_moe")
    CharTokenizer("abcdefghij=").to_transformers().save_pretrained(published.path)
    arguments = ["--model", str(published.path), "--max-new-tokens", "3", "abc="]
    monkeypatch.setattr(sys, "argv", ["worldmtp generate", *arguments])
    script.main()
    assert "draft mtp, K=2, num_draft=1" in capsys.readouterr().err


def test_a_plain_checkpoint_without_some_weights_is_an_error(publish, tmp_path):
    published = publish("mimo")
    published.trunk.save_pretrained(tmp_path)
    weights = published.trunk.state_dict()
    del weights["model.layers.2.mlp.up_proj.weight"]
    weights["model.norm.weight"] = torch.ones(31)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    named = r"missing weights: model\.layers\.2\.mlp\.up_proj\.weight; weights of another shape: model\.norm\.weight\."
    with pytest.raises(ValueError, match=named):
        load_any_model(tmp_path)
    # transformers itself draws what is missing.
    weights["model.norm.weight"] = torch.ones(32)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_probe_draws_nothing_from_the_global_generator(publish, global_rng_untouched):
    published = publish("mimo")
    text = torch.randint(40, (8, 40), generator=torch.Generator().manual_seed(0))
    with global_rng_untouched(), pytest.raises(ValueError, match="order and stage cannot be told"):
        # Random heads agree with nothing; those that do are in test_probing.
        import_checkpoint(published.path, probe_ids=text, generator=torch.Generator().manual_seed(1))
