"""Checkpoints that are not what they say, and models that a layout cannot hold."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from worldmtp.interchange import LayoutError, available_layouts, export_checkpoint, import_checkpoint
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig


def test_one_error_names_every_weight_of_trunk_and_heads(publish):
    published = publish("deepseek_v3")
    tensors = dict(published.tensors)
    del tensors["model.layers.1.mlp.experts.2.up_proj.weight"]
    del tensors["model.layers.4.mlp.experts.3.down_proj.weight"]
    del tensors["model.layers.4.hnorm.weight"]
    tensors["model.layers.4.lost.weight"] = torch.ones(2)
    tensors["model.lost.weight"] = torch.ones(3)
    tensors["model.layers.5.enorm.weight"] = torch.ones(32)
    tensors["model.layers.4.eh_proj.weight"] = torch.ones(32, 32)
    tensors["model.norm.weight"] = torch.ones(31)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].clone()
    tensors["lm_head.weight"][0, 0] = torch.nan
    tensors["model.layers.4.enorm.weight"] = tensors["model.layers.4.enorm.weight"].clone()
    tensors["model.layers.4.enorm.weight"][:2] = torch.inf
    published.rewrite(tensors)
    with pytest.raises(LayoutError) as raised:
        import_checkpoint(published.path)
    assert str(raised.value).splitlines()[1:] == [
        "  count: the config has num_nextn_predict_layers=1, and the files have weights of 2 module(s)",
        "  not finite: lm_head.weight has 1 NaN and 0 infinite values of 1280",
        "  not finite: model.layers.4.enorm.weight has 0 NaN and 2 infinite values of 32",
        "  missing: model.layers.1.mlp.experts.2.up_proj.weight (16, 32)",
        "  missing: model.layers.4.hnorm.weight (32,)",
        "  missing: model.layers.4.mlp.experts.3.down_proj.weight (32, 16)",
        "  unexpected: model.layers.4.lost.weight (2,)",
        "  unexpected: model.layers.5.enorm.weight (32,)",
        "  unexpected: model.lost.weight (3,)",
        "  shape: model.layers.4.eh_proj.weight is (32, 32), expected (32, 64)",
        "  shape: model.norm.weight is (31,), expected (32,)",
    ]


def test_a_checkpoint_without_its_heads_names_them_all(publish):
    published = publish("qwen3_5")
    published.rewrite({name: tensor for name, tensor in published.tensors.items() if not name.startswith("mtp.")})
    with pytest.raises(LayoutError, match=r"missing: mtp\.fc\.weight") as raised:
        import_checkpoint(published.path)
    assert str(raised.value).count("missing: mtp.") == sum(name.startswith("mtp.") for name in published.tensors)


def test_a_checkpoint_that_says_it_has_no_heads_is_refused(publish):
    published = publish("glm4_moe")
    published.edit_config(num_nextn_predict_layers=0)
    with pytest.raises(LayoutError, match=r"num_nextn_predict_layers=0\), and 1 modules' weights"):
        import_checkpoint(published.path)


@pytest.mark.parametrize("value", ["three", [3], 2.5, True, {"a": 1}, ""], ids=repr)
@pytest.mark.parametrize(
    ("layout", "key"),
    [
        ("deepseek_v3", "num_nextn_predict_layers"),
        ("glm4_moe", "num_nextn_predict_layers"),
        ("qwen3_5", "mtp_num_hidden_layers"),
        ("mimo", "num_nextn_predict_layers"),
    ],
)
def test_a_count_that_is_no_number_names_its_key(publish, layout, key, value):
    published = publish(layout)
    published.edit_config(**{key: value})
    options = {"hidden_stage": "pre_norm"} if layout == "mimo" else {}
    with pytest.raises(ValueError, match=rf"the config has {key}={re.escape(repr(value))}, expected a whole number"):
        import_checkpoint(published.path, **options)


@pytest.mark.parametrize(("value", "depth"), [(2, 3), (2.0, 3), ("2", 3), (None, 3)], ids=repr)
def test_a_count_may_be_written_in_other_ways(publish, value, depth):
    published = publish("glm4_moe", num_modules=2)
    published.edit_config(num_nextn_predict_layers=value)
    assert import_checkpoint(published.path).config.depth == depth


@pytest.mark.parametrize("said", [1, 3])
def test_a_wrong_count_is_named_with_its_key(publish, said):
    published = publish("glm4_moe", num_modules=2)
    published.edit_config(num_nextn_predict_layers=said)
    with pytest.raises(LayoutError) as raised:
        import_checkpoint(published.path)
    counted = f"  count: the config has num_nextn_predict_layers={said}, and the files have weights of 2 module(s)"
    assert str(raised.value).splitlines()[1] == counted


def test_a_dtype_that_is_none(publish):
    published = publish("glm4_moe")
    published.edit_config(dtype="bfloat17")
    with pytest.raises(LayoutError, match="dtype='bfloat17', no dtype of torch; correct it"):
        import_checkpoint(published.path)


@pytest.mark.parametrize("kept", [0, 1, 40])
def test_a_config_that_is_cut_off_is_named(publish, kept):
    path = publish("glm4_moe").path / "config.json"
    path.write_text(path.read_text()[:kept])
    with pytest.raises(LayoutError, match=r"glm4_moe/config\.json cannot be read \(.*\); it may be damaged or cut off"):
        import_checkpoint(path.parent)


def test_a_config_that_is_no_object(publish):
    path = publish("glm4_moe").path / "config.json"
    path.write_text("[1]")
    with pytest.raises(LayoutError, match=r"glm4_moe/config\.json holds a list, expected an object"):
        import_checkpoint(path.parent)


def test_a_shard_or_index_that_is_cut_off_is_named(publish, tmp_path):
    model = import_checkpoint(publish("glm4_moe").path)
    export_checkpoint(model, tmp_path / "out", "glm4_moe")
    shard, index = (
        sorted((tmp_path / "out").glob("*.safetensors"))[1],
        tmp_path / "out" / "model.safetensors.index.json",
    )
    whole = shard.read_bytes()
    for kept in (0, 5000, len(whole) - 4):
        shard.write_bytes(whole[:kept])
        with pytest.raises(LayoutError, match=r"model-00002-of-00002\.safetensors cannot be read"):
            import_checkpoint(tmp_path / "out")
    shard.write_bytes(whole)
    index.write_text("{}")
    with pytest.raises(LayoutError, match=r"model\.safetensors\.index\.json has no 'weight_map'"):
        import_checkpoint(tmp_path / "out")
    index.write_text('{"weight_map": ')
    with pytest.raises(LayoutError, match=r"model\.safetensors\.index\.json cannot be read"):
        import_checkpoint(tmp_path / "out")


def test_modules_that_share_their_projection_are_refused(publish):
    published = publish("qwen3_next")
    published.rewrite(published.tensors | {"mtp.layers.1.input_layernorm.weight": torch.ones(32)})
    with pytest.raises(LayoutError, match="share one projection and norm"):
        import_checkpoint(published.path)


def test_a_copy_of_the_embedding_that_is_none_is_an_error(publish):
    published = publish("glm4_moe")
    name = "model.layers.4.embed_tokens.weight"
    published.rewrite(published.tensors | {name: published.tensors[name] + 1})
    with pytest.raises(LayoutError, match=rf"differs: {name} is to be a copy of model\.embed_tokens\.weight"):
        import_checkpoint(published.path)


def test_an_output_layer_that_differs_is_the_heads_own(publish, input_ids):
    published = publish("glm4_moe")
    name = "model.layers.4.shared_head.head.weight"
    published.rewrite(published.tensors | {name: 2 * published.tensors[name]})
    model = import_checkpoint(published.path)
    assert model.config.unembedding == "own"
    with torch.no_grad():
        logits = model(input_ids).depth_logits[1][:, :-1]
    # The trunk's output layer has no bias, so twice the weights are twice the logits.
    torch.testing.assert_close(logits, 2 * published.head_logits(input_ids)[0], atol=1e-5, rtol=1e-5)


def test_copies_need_not_be_in_the_file(publish):
    published = publish("glm4_moe")
    copies = ("model.layers.4.shared_head.head.weight", "model.layers.4.embed_tokens.weight")
    published.rewrite({name: tensor for name, tensor in published.tensors.items() if name not in copies})
    assert import_checkpoint(published.path).config.unembedding == "shared"


def test_rotary_frequencies_in_old_files_are_passed_over(publish):
    published = publish("glm4_moe")
    published.rewrite(published.tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)})
    import_checkpoint(published.path)


def test_a_shard_that_is_not_there(publish):
    published = publish("glm4_moe")
    index = {"weight_map": dict.fromkeys(published.tensors, "model-00001-of-00001.safetensors")}
    (published.path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"lacks \['model-00001-of-00001\.safetensors'\]"):
        import_checkpoint(published.path)


def test_an_index_that_forgets_a_weight(publish):
    published = publish("glm4_moe")
    weight_map = dict.fromkeys(published.tensors, "model.safetensors")
    del weight_map["lm_head.weight"]
    (published.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(LayoutError, match=r"only in the files \['lm_head\.weight'\]"):
        import_checkpoint(published.path)


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither config\.json nor params\.json"):
        import_checkpoint(tmp_path)


def test_an_unknown_model_type(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="no layout is recognised by architectures=None or model_type='gpt2'"):
        import_checkpoint(tmp_path)


def test_an_unknown_layout_suggests_the_nearest(publish):
    with pytest.raises(ValueError, match="did you mean 'deepseek_v3'"):
        import_checkpoint(publish("glm4_moe").path, "deepseek_v4")


def test_layouts_are_listed():
    assert available_layouts() == ["deepseek_v3", "facebook_mtp", "glm4_moe", "mimo", "qwen3_5", "qwen3_next"]


def test_mimo_does_not_say_its_hidden_stage(publish):
    with pytest.raises(LayoutError, match="hidden_stage of a mimo checkpoint cannot be told from its files"):
        import_checkpoint(publish("mimo").path)


def model_on(trunk, **config) -> MTPModel:
    return MTPModel.from_trunk(trunk, MTPConfig(**config))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"concat_order": "hidden_first"}, "concat_order='hidden_first': the layout means 'embedding_first'"),
        ({"hidden_stage": "pre_norm"}, "hidden_stage='pre_norm': the layout means 'post_norm'"),
        ({"share_depths": True}, "share_depths=True: the layout means False"),
        ({"unembedding": "own"}, "unembedding='own': the layout means 'shared'"),
        ({"output_norm": "shared"}, "output_norm='shared': the layout means 'own'"),
        ({"head_block": "llama"}, "head_block='llama': the layout means 'trunk'"),
        ({"depth": 3, "recycle_stage": "pre_norm"}, "recycle_stage='pre_norm': the layout means 'post_norm'"),
        ({"depth": 1}, "depth=1: there are no heads"),
        ({"head": "parallel"}, "head='parallel': the layout means 'sequential'"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused_by_name(publish, tmp_path, config, named):
    model = model_on(publish("glm4_moe").trunk, **{"depth": 2} | config)
    with pytest.raises(LayoutError) as raised:
        export_checkpoint(model, tmp_path / "out", "glm4_moe")
    assert f"\n  {named}" in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_all_obstacles_are_named_at_once(tiny_trunk, tmp_path):
    model = model_on(tiny_trunk("gpt2"), depth=3, concat_order="hidden_first")
    with pytest.raises(LayoutError, match="4 problem") as raised:
        export_checkpoint(model, tmp_path / "out", "qwen3_next")
    assert [line.split(":")[0].strip() for line in str(raised.value).splitlines()[1:]] == [
        "trunk",
        "depth=3",
        "head_block='llama'",
        "concat_order='hidden_first'",
    ]


def test_a_dense_trunk_has_no_sparse_layer_for_the_layout(publish, tmp_path):
    trunk = publish("glm4_moe", first_k_dense_replace=4).trunk
    with pytest.raises(LayoutError, match="trunk first_k_dense_replace=4"):
        export_checkpoint(model_on(trunk, depth=2), tmp_path / "out", "glm4_moe")


def test_a_folder_with_a_checkpoint_is_not_written_over(publish):
    published = publish("glm4_moe")
    with pytest.raises(FileExistsError, match=r"has \['config\.json', 'model\.safetensors'\] already"):
        export_checkpoint(model_on(published.trunk, depth=2), published.path, "glm4_moe")


@pytest.mark.parametrize("rows", [256, 300])
def test_eight_bit_weights_are_dequantised_by_blocks(publish, rows):
    """The file's projection in eight bits: 128 rows and columns share a scale, and the last ones are fewer."""
    published = publish("mimo", intermediate_size=rows)
    name = "model.mtp_layers.0.mlp.down_proj.weight"  # hidden 32 x rows: one block by two or three
    generator = torch.Generator().manual_seed(0)
    stored = torch.randn((32, rows), generator=generator).to(torch.float8_e4m3fn)
    scales = torch.tensor([[0.5, 2.0, 8.0]])[:, : -(-rows // 128)]
    expected = stored.float().clone()
    expected[:, :128] *= 0.5
    expected[:, 128:256] *= 2.0
    expected[:, 256:] *= 8.0
    published.rewrite(published.tensors | {name: stored, f"{name}_scale_inv": scales})
    model = import_checkpoint(published.path, hidden_stage="post_norm")
    assert torch.equal(model.heads.layers[0].block.mlp.down_proj.weight, expected)

    few, lost = scales[:, :1].clone(), scales.clone()
    published.rewrite(published.tensors | {name: stored, f"{name}_scale_inv": few, "lost_scale_inv": lost})
    with pytest.raises(LayoutError) as raised:
        import_checkpoint(published.path, hidden_stage="post_norm")
    assert "unexpected: lost_scale_inv, which scales no eight-bit weight" in str(raised.value)
    assert f"{name}_scale_inv: scale is (1, 1), expected (1, {-(-rows // 128)})" in str(raised.value)
    published.rewrite(published.tensors | {name: stored})
    with pytest.raises(LayoutError, match=f"missing: {name}_scale_inv"):
        import_checkpoint(published.path, hidden_stage="post_norm")


def test_eight_bit_weights_of_the_trunk_too_and_the_config_forgets_it(publish, tmp_path):
    published = publish("deepseek_v3")
    name = "model.layers.1.mlp.experts.0.gate_proj.weight"
    stored = published.tensors[name].to(torch.float8_e4m3fn)
    published.rewrite(published.tensors | {name: stored, f"{name}_scale_inv": torch.full((2, 4), 3.0)})
    published.edit_config(quantization_config={"quant_method": "fp8", "weight_block_size": [8, 8]}, dtype="bfloat16")
    model = import_checkpoint(published.path)
    assert model.dtype == torch.bfloat16
    gate = model.trunk.model.layers[1].mlp.experts.gate_up_proj[0, :16]
    assert torch.equal(gate, (3 * stored.float()).bfloat16())
    assert model.trunk.model.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32
    export_checkpoint(model, tmp_path / "out", "deepseek_v3")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_pickle_with_code_is_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("run",))

    (tmp_path / "params.json").write_text('{"n_future_tokens": 2}')
    torch.save({"weight": Harmful()}, tmp_path / "consolidated.pth")
    with pytest.raises(Exception, match="Weights only load failed"):
        import_checkpoint(tmp_path)


def test_parts_for_model_parallelism_are_refused(tmp_path):
    (tmp_path / "params.json").write_text('{"n_future_tokens": 2}')
    for part in ("00", "01"):
        torch.save({}, tmp_path / f"consolidated.{part}.pth")
    with pytest.raises(LayoutError, match="cut into 2 parts"):
        import_checkpoint(tmp_path)


def test_a_file_of_no_known_form(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "glm4_moe"}')
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match=r"has none of model\.safetensors\.index\.json"):
        import_checkpoint(tmp_path)
