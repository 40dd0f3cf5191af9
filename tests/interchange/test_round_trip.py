"""Checkpoints of all sequential layouts: read as transformers reads them, written as they were."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from worldmtp.interchange import export_checkpoint, import_checkpoint
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig

LAYOUTS = ("deepseek_v3", "glm4_moe", "qwen3_next", "qwen3_5", "mimo")


def read(published, **options):
    if published.layout == "mimo":
        options.setdefault("hidden_stage", "pre_norm")
    return import_checkpoint(published.path, **options)


def written(directory):
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same_tensors(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_imported_logits_are_those_of_transformers(publish, input_ids, layout):
    published = publish(layout)
    model = read(published)
    assert model.config.depth == 2
    assert model.config.concat_order == ("hidden_first" if layout == "mimo" else "embedding_first")
    assert model.config.hidden_stage == ("pre_norm" if layout == "mimo" else "post_norm")
    with torch.no_grad():
        output = model(input_ids)
        assert torch.equal(output.logits, published.trunk(input_ids).logits)
    # The last position of our row would have read a token beyond it.
    torch.testing.assert_close(
        output.depth_logits[1][:, :-1], published.head_logits(input_ids)[0], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("layout", ["deepseek_v3", "glm4_moe"])
def test_two_modules_are_depths_two_and_three(publish, input_ids, layout):
    published = publish(layout, num_modules=2)
    model = read(published)
    assert model.config.depth == 3
    with torch.no_grad():
        logits = model(input_ids).depth_logits
    for depth, expected in enumerate(published.head_logits(input_ids), start=2):
        torch.testing.assert_close(logits[depth - 1][:, : 1 - depth], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_export_of_import_is_the_file_again_and_its_base_loads(publish, tmp_path, layout):
    published = publish(layout)
    model = read(published)
    out = tmp_path / "out"
    out.mkdir()
    (out / "tokenizer.json").write_text("{}")
    report = export_checkpoint(model, out, layout=layout)
    assert (out / "tokenizer.json").read_text() == "{}"
    assert same_tensors(written(out), published.tensors)
    assert sorted(published.tensors) == list(report.weights)
    assert set(report.files) == {path.name for path in out.iterdir()} - {"tokenizer.json"}
    assert set(report.left_out) == {f"world_heads.{name}" for name in model.world_heads.state_dict()}
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == published.tensors.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in published.tensors.values())

    base, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert same_tensors(base.state_dict(), published.trunk.state_dict())

    again = import_checkpoint(out, hidden_stage=model.config.hidden_stage)
    assert same_tensors(again.trunk.state_dict(), model.trunk.state_dict())
    assert same_tensors(again.heads.state_dict(), model.heads.state_dict())


@pytest.mark.parametrize(
    ("layout", "key"), [("deepseek_v3", "num_nextn_predict_layers"), ("qwen3_5", "mtp_num_hidden_layers")]
)
def test_the_number_of_modules_is_written(publish, tmp_path, layout, key):
    export_checkpoint(read(publish(layout)), tmp_path / "out", layout)
    assert json.loads((tmp_path / "out" / "config.json").read_text())[key] == 1


def test_mimo_is_found_by_engines_by_architecture_and_by_transformers_as_qwen2(publish, tmp_path):
    export_checkpoint(read(publish("mimo")), tmp_path / "out", "mimo")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["MiMoForCausalLM"]
    assert config["model_type"] == "qwen2"
    assert config["num_nextn_predict_layers"] == 1
    assert "auto_map" not in config


def test_a_sharded_checkpoint_is_the_single_one(publish, input_ids):
    published = publish("qwen3_next")
    whole = read(published)
    names = sorted(published.tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, chosen in parts.items():
        save_file({name: published.tensors[name] for name in chosen}, published.path / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, chosen in parts.items() for name in chosen}}
    (published.path / "model.safetensors.index.json").write_text(json.dumps(index))
    (published.path / "model.safetensors").unlink()
    assert same_tensors(
        read(published).state_dict() | whole.world_heads.state_dict(prefix="world_heads."), whole.state_dict()
    )


def test_a_multimodal_file_gives_its_text_model(publish, input_ids, tmp_path):
    published = publish("qwen3_5")
    expected = read(published)(input_ids).logits
    text_config = json.loads((published.path / "config.json").read_text())
    nested = {
        name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name: tensor
        for name, tensor in published.tensors.items()
    }
    published.rewrite(nested | {"model.visual.patch_embed.weight": torch.ones(2)})
    (published.path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "qwen3_5",
                "architectures": ["Qwen3_5ForConditionalGeneration"],
                "text_config": text_config,
                "tie_word_embeddings": False,
            }
        )
    )
    model = read(published)
    assert model.config.trunk_config.model_type == "qwen3_5_text"
    assert torch.equal(model(input_ids).logits, expected)
    export_checkpoint(model, tmp_path / "out", "qwen3_5")
    assert same_tensors(written(tmp_path / "out"), nested)


def test_a_model_with_heads_made_here_survives_the_journey(publish, tmp_path, input_ids):
    """From a trunk that was never in a file, heads drawn here."""
    trunk = publish("deepseek_v3").trunk
    config = MTPConfig(depth=3, initializer_range=0.2)
    model = MTPModel.from_trunk(trunk, config, torch.Generator().manual_seed(1)).eval()
    export_checkpoint(model, tmp_path / "out", "deepseek_v3")
    again = import_checkpoint(tmp_path / "out")
    with torch.no_grad():
        for ours, theirs in zip(again(input_ids).depth_logits, model(input_ids).depth_logits, strict=True):
            assert torch.equal(ours, theirs)


def test_tied_embeddings_stay_tied(publish, tmp_path):
    published = publish("mimo", tie_word_embeddings=True)
    model = read(published)
    assert model.trunk.lm_head.weight is model.trunk.model.embed_tokens.weight
    export_checkpoint(model, tmp_path / "out", "mimo")
    assert same_tensors(written(tmp_path / "out"), published.tensors)


@pytest.mark.parametrize("layout", ["deepseek_v3", "qwen3_5"])
def test_an_imported_model_is_saved_and_loaded_as_our_own_checkpoint(publish, tmp_path, input_ids, layout):
    published = publish(layout)
    (published.path / "generation_config.json").write_text('{"eos_token_id": 7}')
    model = read(published)
    assert model.generation_config.eos_token_id == 7
    model.save_pretrained(tmp_path / "own")
    again = MTPModel.from_pretrained(tmp_path / "own").eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids).depth_logits[1], model(input_ids).depth_logits[1])
    export_checkpoint(again, tmp_path / "out", layout)
    assert same_tensors(written(tmp_path / "out"), published.tensors)


def test_experts_are_written_one_by_one_whatever_file_the_trunk_came_from(publish, tmp_path):
    """Loaded from a file that holds them together, a trunk would be saved that way by transformers."""
    published = publish("glm4_moe")
    model = read(published)
    state = published.trunk.state_dict()
    model.trunk = type(published.trunk).from_pretrained(None, config=published.trunk.config, state_dict=state)
    export_checkpoint(model, tmp_path / "out", "glm4_moe")
    assert same_tensors(written(tmp_path / "out"), published.tensors)
