"""EAGLE-3 heads: attention by hand, and parity with a loop that decodes root by root over a cache of its own.

Rotary frequencies are single precision in Hugging Face's class, so parity with angles in double precision holds to
1e-6 and no better; mutants of the loop are off by more than 1e-3.
"""

import copy

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig

from worldmtp.heads.eagle import BranchAttention, EagleHead
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig

PARITY = {"rtol": 0.0, "atol": 1e-6}
EXACT = {"rtol": 0.0, "atol": 1e-10}
KINDS = ("llama", "qwen3", "gpt2", "gpt_neox")


def test_attention_by_hand():
    # Queries and keys are zero, so a query weighs what it may see alike. Values are the first two input channels:
    # query 0 sees (2, 4) alone; query 1 sees (2, 4) and (6, 0), mean (4, 2). The output layer swaps the channels.
    sizes = LlamaConfig(hidden_size=2, num_attention_heads=1, num_key_value_heads=1, head_dim=2)
    attention = BranchAttention(sizes).double()
    with torch.no_grad():
        attention.q_proj.weight.zero_()
        attention.k_proj.weight.zero_()
        attention.v_proj.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]]))
        attention.o_proj.weight.copy_(torch.tensor([[0.0, 1], [1, 0]]))
    inputs = torch.tensor([[[2.0, 4, 9, 9], [6, 0, 9, 9]]], dtype=torch.float64)
    still = torch.ones((1, 2, 2), dtype=torch.float64), torch.zeros((1, 2, 2), dtype=torch.float64)
    result = attention(inputs, still, torch.tensor([[[[True, False], [True, True]]]]), None)
    torch.testing.assert_close(result, torch.tensor([[[4.0, 2], [2, 4]]], dtype=torch.float64), **EXACT)


def rms_norm(hidden, norm):
    eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    return hidden / (hidden.square().mean(dim=-1, keepdim=True) + eps).sqrt() * norm.weight


def rotated(vectors, position):
    """Channels j and j + half of each head as one complex number, turned by position * 10000^(-j / half)."""
    half = vectors.shape[-1] // 2
    angles = position * 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(vectors[..., :half], vectors[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1)


def naive(model, row, root, mutant=""):
    """Latents of depths 2 .. K at one root of one unpadded row, one token at a time, keys in a growing list."""
    config, heads = model.trunk.config, model.heads
    layer, num_heads = heads.layers[0], config.num_attention_heads
    states = model.trunk.base_model(row[None], output_hidden_states=True).hidden_states
    read = torch.cat([states[1 + index][0] for index in heads.feature_layers], dim=-1)
    carries = read @ heads.fuse.weight.T
    keys, values, latents = [], [], []

    def advance(carry, token, slot):
        inputs = torch.cat([rms_norm(model.embed(token), layer.embedding_norm), rms_norm(carry, layer.hidden_norm)])
        queries, key, value = (
            (projection.weight @ inputs).view(-1, layer.attention.head_dim)
            for projection in (layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj)
        )
        keys.append(rotated(key, slot))
        values.append(value)
        queries, group = rotated(queries, slot), num_heads // len(key)
        mixed = []
        for head in range(num_heads):
            scores = torch.stack([k[head // group] @ queries[head] for k in keys]) / len(queries[head]) ** 0.5
            mixed.append((scores.softmax(0)[:, None] * torch.stack([v[head // group] for v in values])).sum(0))
        attended = carry + layer.attention.o_proj.weight @ torch.cat(mixed)
        normed = rms_norm(attended, layer.mlp_norm)
        gate, up = layer.mlp.gate_proj.weight @ normed, layer.mlp.up_proj.weight @ normed
        return attended + layer.mlp.down_proj.weight @ (functional.silu(gate) * up)

    for position in range(root + 1):
        carry = advance(carries[position], row[position + 1], position)
    if mutant == "sees depth 2 beyond the root":
        advance(carries[root + 1], row[root + 2], root + 1)
    latents.append(rms_norm(carry, heads.output.norms[0]))
    for depth in range(3, heads.depths.stop):
        if mutant == "forgets its branch" and depth > 3:
            del keys[-1], values[-1]
        if mutant == "feeds back the normed state":
            carry = latents[-1]
        slot = root if mutant == "stands still" else root + depth - 2
        carry = advance(carry, row[root + depth - 1], slot)
        latents.append(rms_norm(carry, heads.output.norms[0]))
    return torch.stack(latents)


@pytest.fixture
def model_of(make_model):
    def make(kind, **config):
        return make_model(kind, head="eagle", shaken=True, num_layers=3, feature_layers=(0, 1), **config)

    return make


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_all_roots_at_once_equal_decoding_root_by_root(kind, model_of, tokens):
    model = model_of(kind)
    latents = torch.stack(model.latents(tokens)[1:], dim=2)
    for row in range(2):
        for root in range(4):  # of 7 tokens, those whose depth 4 has a token to read
            torch.testing.assert_close(latents[row, root], naive(model, tokens[row], root), **PARITY)


@pytest.mark.parametrize(
    "mutant", ["sees depth 2 beyond the root", "forgets its branch", "feeds back the normed state", "stands still"]
)
@torch.no_grad()
def test_mutants_of_the_loop_are_told_apart(mutant, model_of, tokens):
    model = model_of("llama")
    ours = torch.stack(model.latents(tokens)[1:], dim=2)[0, 2]
    theirs = naive(model, tokens[0], 2, mutant)
    torch.testing.assert_close(ours[0], theirs[0], **PARITY)
    assert (ours[2] - theirs[2]).abs().max() > 1e-3


@torch.no_grad()
def test_what_is_fed_back_can_be_normed(model_of, tokens):
    model = model_of("llama", recycle_stage="post_norm")
    ours = torch.stack(model.latents(tokens)[1:], dim=2)[0, 2]
    torch.testing.assert_close(ours, naive(model, tokens[0], 2, "feeds back the normed state"), **PARITY)


def test_what_it_is_made_of(make_model):
    model = make_model("llama", head="eagle", num_layers=3)
    heads = model.heads
    assert isinstance(heads, EagleHead)
    assert (model.config.share_depths, model.config.recycle_stage, model.config.output_norm) == (
        True,
        "pre_norm",
        "own",
    )
    assert heads.feature_layers == (0, 1, 2)
    assert heads.fuse.weight.shape == (16, 3 * 16)
    assert (len(heads.layers), len(heads.output.norms)) == (1, 1)
    # The trunk has 4 heads of 4 channels in 2 groups, and an inner width of 32.
    attention = heads.layers[0].attention
    assert (attention.q_proj.weight.shape, attention.k_proj.weight.shape) == ((16, 32), (8, 32))
    assert heads.layers[0].mlp.gate_proj.weight.shape == (32, 16)
    assert len(make_model("llama", head="eagle", share_depths=False, head_width=5).heads.layers) == 3
    gpt2 = make_model("gpt2", head="eagle").heads
    assert gpt2.layers[0].attention.k_proj.weight.shape == (16, 32)
    assert gpt2.layers[0].mlp.gate_proj.weight.shape == (64, 16)


@pytest.mark.parametrize(
    ("num_layers", "expected"),
    [
        (1, (0,)),
        (2, (0, 1)),
        (6, (0, 3, 5)),
        (8, (1, 3, 4)),  # what enters layers 2, 4 and 5 are the outputs of 1, 3 and 4
        (32, (1, 15, 28)),
    ],
)
def test_default_layers(num_layers, expected):
    assert EagleHead.defaults(LlamaConfig(num_hidden_layers=num_layers)).feature_layers == expected


def test_without_feature_layers_it_reads_the_last_state(make_model, tokens):
    model = make_model("llama", head="eagle", feature_layers=(), hidden_stage="pre_norm")
    features = model.trunk_features(tokens)
    torch.testing.assert_close(model.heads.begin(features), features.pre_norm @ model.heads.fuse.weight.T, **EXACT)


def test_the_trunk_alone_has_no_modules_and_reads_nothing(make_model, tokens):
    model = make_model("llama", head="eagle", depth=1)
    assert not list(model.heads.parameters())
    assert model.trunk_features(tokens).layers == ()
    assert len(model(tokens).depth_logits) == 1


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_saved_copied_and_in_half_precision(kind, make_model, tokens, tmp_path):
    model = make_model(kind, head="eagle", dtype=torch.bfloat16, shaken=True, unembedding="own")
    expected = model(tokens).depth_logits
    assert all(logits.dtype == torch.bfloat16 and logits.isfinite().all() for logits in expected)
    model.save_pretrained(tmp_path)
    for other in (copy.deepcopy(model), MTPModel.from_pretrained(tmp_path, dtype=torch.bfloat16)):
        for ours, theirs in zip(other(tokens).depth_logits, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head_layers": 2}, "head_layers=2 with head='eagle': it has no stack of layers"),
        ({"head_init": "copy_trunk"}, "head_init='copy_trunk' with head='eagle': these heads have no layer of"),
        (
            {"hidden_stage": "pre_norm"},
            r"hidden_stage='pre_norm' with feature_layers=\[0, 1\].*pass feature_layers=\(\)",
        ),
        ({"output_norm": "none"}, "output_norm='none' with head='eagle': the LM head's weights expect normed states"),
        ({"feature_layers": (2,)}, r"feature_layers=\[2\] names layer 2, and the trunk has 2"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message, make_trunk):
    with pytest.raises(ValueError, match=message):
        MTPModel.from_trunk(make_trunk("llama"), MTPConfig(head="eagle", **fields))


def test_an_odd_number_of_channels_a_head_is_refused(tiny_trunk):
    with pytest.raises(ValueError, match="hidden_size=12 over num_attention_heads=4 gives 3 channels per attention"):
        MTPModel.from_trunk(tiny_trunk("gpt2", hidden_size=12), MTPConfig(head="eagle"))
