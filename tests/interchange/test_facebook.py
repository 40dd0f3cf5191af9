"""Meta's layout against a forward written out as the release computes it, with complex rotary embeddings."""

import json
import math

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from worldmtp.cli.arguments import model_directory
from worldmtp.interchange import LayoutError, export_checkpoint, import_checkpoint
from worldmtp.interchange.llama_names import inner_size, params_from_config, to_half_split, to_interleaved
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.training.saved_model import load_any_model

PARAMS = {
    "dim": 32,
    "n_layers": 5,  # three of the trunk, and two extra heads
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": -1,
    "multiple_of": 8,
    "norm_eps": 1e-5,
    "n_future_tokens": 3,
}
INNER = 88  # int(8 * 32 / 3) = 85, rounded up to a multiple of 8
VOCAB = 40


def block_weights(prefix, generator):
    shapes = {
        "attention.wq": (32, 32),
        "attention.wk": (16, 32),
        "attention.wv": (16, 32),
        "attention.wo": (32, 32),
        "feed_forward.w1": (INNER, 32),
        "feed_forward.w2": (32, INNER),
        "feed_forward.w3": (INNER, 32),
        "attention_norm": (32,),
        "ffn_norm": (32,),
    }
    return {f"{prefix}.{name}.weight": torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    made = {
        "tok_embeddings.weight": torch.randn((VOCAB, 32), generator=generator),
        "norm.weight": torch.rand(32, generator=generator) + 0.5,
        "output.weight": torch.randn((VOCAB, 32), generator=generator),
    }
    for layer in range(3):
        made |= block_weights(f"layers.{layer}", generator)
    for head in range(2):
        made |= block_weights(f"extra_heads.{head}", generator)
    return made


@pytest.fixture
def checkpoint(tmp_path, tensors):
    path = tmp_path / "facebook"
    path.mkdir()
    (path / "params.json").write_text(json.dumps(PARAMS))
    torch.save(tensors | {"rope.freqs": torch.ones(4)}, path / "consolidated.pth")
    return path


def rms(hidden, weight):
    return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-5) * weight


def rotate(heads, length):
    """[batch, time, head, 8]: neighbouring channels are one complex number."""
    frequencies = 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    angles = torch.outer(torch.arange(length), frequencies)[None, :, None]
    pairs = torch.view_as_complex(heads.reshape(*heads.shape[:-1], 4, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def block(weights, prefix, hidden):
    batch, length, _ = hidden.shape
    normed = rms(hidden, weights[f"{prefix}.attention_norm.weight"])
    query = rotate((normed @ weights[f"{prefix}.attention.wq.weight"].T).view(batch, length, 4, 8), length)
    key = rotate((normed @ weights[f"{prefix}.attention.wk.weight"].T).view(batch, length, 2, 8), length)
    value = (normed @ weights[f"{prefix}.attention.wv.weight"].T).view(batch, length, 2, 8)
    key, value = key.repeat_interleave(2, dim=2), value.repeat_interleave(2, dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(8)
    scores = scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), -torch.inf)
    mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value).flatten(-2)
    hidden = hidden + mixed @ weights[f"{prefix}.attention.wo.weight"].T
    normed = rms(hidden, weights[f"{prefix}.ffn_norm.weight"])
    gate = functional.silu(normed @ weights[f"{prefix}.feed_forward.w1.weight"].T)
    inner = gate * (normed @ weights[f"{prefix}.feed_forward.w3.weight"].T)
    return hidden + inner @ weights[f"{prefix}.feed_forward.w2.weight"].T


def all_heads(weights, input_ids):
    hidden = weights["tok_embeddings.weight"][input_ids]
    for layer in range(2):  # the last of `layers` is the head of the next token
        hidden = block(weights, f"layers.{layer}", hidden)
    heads = ["layers.2", "extra_heads.0", "extra_heads.1"]
    return [rms(block(weights, head, hidden), weights["norm.weight"]) @ weights["output.weight"].T for head in heads]


def test_logits_of_every_head_are_the_releases(checkpoint, tensors, input_ids):
    model = import_checkpoint(checkpoint)
    assert (model.config.head, model.config.depth, model.config.feature_layers) == ("parallel", 3, (1,))
    with torch.no_grad():
        logits = model(input_ids).depth_logits
    for ours, expected in zip(logits, all_heads(tensors, input_ids), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_the_wrong_rotary_order_would_show(checkpoint, tensors, input_ids):
    """The known answer tells the orders apart: with the rows left as they are, the logits are others."""
    model = import_checkpoint(checkpoint)
    queries = {name: tensor for name, tensor in tensors.items() if name.endswith("wq.weight")}
    swapped = tensors | {name: to_half_split(tensor, 4) for name, tensor in queries.items()}
    with torch.no_grad():
        gap = model(input_ids).depth_logits[1] - all_heads(swapped, input_ids)[1]
    assert gap.abs().max() > 0.1


def test_rows_by_hand():
    """Two heads of four channels: rows 0 1 2 3 are pairs (0 1), (2 3), and become halves 0 2 | 1 3."""
    weight = torch.arange(8.0)[:, None]
    halves = to_half_split(weight, num_heads=2)
    assert halves.flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert torch.equal(to_interleaved(halves, num_heads=2), weight)


def test_the_journey_back(checkpoint, tensors, tmp_path, input_ids):
    model = import_checkpoint(checkpoint)
    report = export_checkpoint(model, tmp_path / "out", "facebook_mtp")
    assert report.files == ("consolidated.pth", "params.json")
    written = torch.load(tmp_path / "out" / "consolidated.pth", weights_only=True)
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)
    params = json.loads((tmp_path / "out" / "params.json").read_text())
    assert {name: params[name] for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "n_future_tokens")} == {
        "dim": 32,
        "n_layers": 5,
        "n_heads": 4,
        "n_kv_heads": 2,
        "n_future_tokens": 3,
    }
    assert "rope_theta" not in params
    again = import_checkpoint(tmp_path / "out")
    assert torch.equal(again(input_ids).depth_logits[2], model(input_ids).depth_logits[2])


def test_the_command_line_and_from_pretrained_know_the_release(checkpoint, tensors, input_ids):
    assert model_directory(checkpoint, "--model") == checkpoint
    model = load_any_model(checkpoint)
    with torch.no_grad():
        logits = model(input_ids).depth_logits
    for ours, theirs in zip(logits, all_heads(tensors, input_ids), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    with pytest.raises(
        ValueError, match=r"published checkpoint in the layout 'facebook_mtp'; .*import_checkpoint\(path"
    ):
        MTPModel.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_future_tokens": "three"}, "the config has n_future_tokens='three', expected a whole number"),
        ({"n_future_tokens": 2.5}, r"the config has n_future_tokens=2\.5, expected a whole number"),
        ({"n_layers": [3]}, r"the config has n_layers=\[3\], expected a whole number"),
        ({"dim": None}, "the config has dim=None, expected a whole number"),
    ],
    ids=str,
)
def test_odd_sizes_name_their_keys(checkpoint, change, message):
    (checkpoint / "params.json").write_text(json.dumps(PARAMS | change))
    with pytest.raises(LayoutError, match=message):
        import_checkpoint(checkpoint)


def test_a_size_that_is_not_there(checkpoint):
    (checkpoint / "params.json").write_text(json.dumps({key: PARAMS[key] for key in PARAMS if key != "n_heads"}))
    with pytest.raises(LayoutError, match=r"params\.json has no 'n_heads'"):
        import_checkpoint(checkpoint)


def test_weights_that_are_cut_off_name_their_file(checkpoint):
    whole = (checkpoint / "consolidated.pth").read_bytes()
    for kept in (0, 5000, len(whole) - 100):
        (checkpoint / "consolidated.pth").write_bytes(whole[:kept])
        with pytest.raises(
            LayoutError, match=r"facebook/consolidated\.pth cannot be read \(.*\); it may be damaged or cut off"
        ):
            import_checkpoint(checkpoint)


def test_missing_and_unexpected_weights_go_by_the_files_names(checkpoint, tensors):
    del tensors["extra_heads.1.attention.wk.weight"]
    tensors["extra_heads.2.ffn_norm.weight"] = torch.ones(32)
    tensors["layers.0.attention.wq.weight"] = torch.ones(3, 3)
    torch.save(tensors, checkpoint / "consolidated.pth")
    with pytest.raises(LayoutError) as raised:
        import_checkpoint(checkpoint)
    assert str(raised.value).splitlines()[1:] == [
        "  count: the config has n_future_tokens - 1=2, and the files have weights of 3 module(s)",
        "  missing: extra_heads.1.attention.wk.weight (16, 32)",
        "  unexpected: extra_heads.2.ffn_norm.weight (32,)",
        "  shape: layers.0.attention.wq.weight is (3, 3), expected (32, 32)",
    ]


@pytest.mark.parametrize("inner", [16, 48, 85, 86, 256])
def test_params_give_back_the_inner_width(inner):
    config = LlamaConfig(hidden_size=32, intermediate_size=inner, num_attention_heads=4)
    assert inner_size(params_from_config(config, 2)) == inner


def test_inner_width_of_llama_2_7b_by_hand():
    """8 * 4096 / 3 = 10922.67; the next multiple of 256 is 43 * 256 = 11008."""
    assert inner_size({"dim": 4096, "multiple_of": 256}) == 11008


def test_parallel_heads_have_no_order_to_say_or_probe(checkpoint, input_ids):
    with pytest.raises(ValueError, match="are parallel: they have no order or stage"):
        import_checkpoint(checkpoint, concat_order="hidden_first")
    with pytest.raises(ValueError, match="are parallel: they have no order or stage"):
        import_checkpoint(checkpoint, probe_ids=input_ids)


@pytest.mark.parametrize(
    ("trunk", "config", "named"),
    [
        ({"attention_bias": True}, {}, "trunk attention_bias=True"),
        ({"mlp_bias": True}, {}, "trunk mlp_bias=True"),
        ({"tie_word_embeddings": True}, {}, "trunk tie_word_embeddings=True"),
        ({"head_dim": 16}, {}, "trunk head_dim=16: the layout means 8"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            {},
            "trunk rope_type='linear'",
        ),
        ({}, {"feature_layers": (-1,)}, "feature_layers=(2,): the layout means (1,)"),
        ({}, {"stride": 2}, "stride=2: the layout means 1"),
        ({}, {"output_norm": "own"}, "output_norm='own': the layout means 'shared'"),
        ({}, {"head": "sequential"}, "head='sequential': the layout means 'parallel'"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused_by_name(tmp_path, trunk, config, named):
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    llama = LlamaForCausalLM(LlamaConfig(**sizes | {"num_attention_heads": 4} | trunk))
    model = MTPModel.from_trunk(llama, MTPConfig(**{"head": "parallel", "depth": 3} | config))
    with pytest.raises(LayoutError) as raised:
        export_checkpoint(model, tmp_path / "out", "facebook_mtp")
    assert f"\n  {named}" in str(raised.value)
