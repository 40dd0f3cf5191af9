"""Hydra heads: the equation by hand, what each depth is grounded in, and what is refused."""

import pytest
import torch
from torch.nn import functional

from worldmtp.heads.hydra import GroundedMLP
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig

EXACT = {"rtol": 0.0, "atol": 1e-10}


def test_an_mlp_by_hand():
    # Inputs (3, 2): W_0 = (1, -1) gives 1, SiLU(1) = 1 / (1 + e^-1) = 0.7310585786300049.
    # The residual layer doubles it: SiLU(2 * 0.731..) = 1.46211715726 * sigmoid(1.46211715726) = 1.18742..., so
    # z = 0.73105857863 + 1.18742... ; the output multiplies by -2.
    mlp = GroundedMLP(2, hidden_size=1, width=1, num_layers=1, starts_at_zero=True).double()
    with torch.no_grad():
        mlp.input.weight.copy_(torch.tensor([[1.0, -1.0]]))
        mlp.layers[0].weight.fill_(2.0)
        mlp.output.weight.fill_(-2.0)
        mlp.input.bias.zero_()
        mlp.layers[0].bias.zero_()
    first = 1 / (1 + 2.718281828459045**-1)
    second = 2 * first / (1 + 2.718281828459045 ** (-2 * first))
    result = mlp(torch.tensor([3.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(result, torch.tensor([-2 * (first + second)], dtype=torch.float64), **EXACT)


def by_hand(model, tokens, num_seen=None):
    """Latents of depths 2 .. 4, written out; ``num_seen`` embeddings instead of the depth's own number: a mutant."""
    hidden = model.trunk.base_model(tokens).last_hidden_state
    found = []
    for depth, mlp in enumerate(model.heads.mlps, start=2):
        embeds = [model.embed(tokens.roll(-ahead, dims=1)) for ahead in range(1, depth)]
        if num_seen is not None:
            embeds = [embed if ahead < num_seen else torch.zeros_like(embed) for ahead, embed in enumerate(embeds)]
        z = functional.silu(torch.cat([*embeds, hidden], dim=-1) @ mlp.input.weight.T + mlp.input.bias)
        for layer in mlp.layers:
            z = z + functional.silu(z @ layer.weight.T + layer.bias)
        found.append(hidden + z @ mlp.output.weight.T + mlp.output.bias)
    return found


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_each_depth_reads_the_trunk_and_every_token_since(kind, make_model, tokens):
    model = make_model(kind, head="hydra", shaken=True, head_width=24, head_layers=2)
    latents = model.latents(tokens)[1:]
    for ours, theirs in zip(latents, by_hand(model, tokens), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    # Grounded in one token only, depth 2 is the same and depth 3 is not.
    mutants = by_hand(model, tokens, num_seen=1)
    torch.testing.assert_close(latents[0], mutants[0], **EXACT)
    assert not torch.allclose(latents[1], mutants[1], atol=1e-3)


def test_concat_order_moves_the_hidden_state(make_model, tokens):
    first = make_model("llama", head="hydra", shaken=True)
    second = make_model("llama", head="hydra", shaken=True, concat_order="hidden_first")
    expected = first.latents(tokens)
    assert not torch.allclose(second.latents(tokens)[2], expected[2])
    # Equal draws for both: the last 16 columns of one are to be the first of the other.
    for mlp in second.heads.mlps:
        mlp.input.weight.data = mlp.input.weight.data.roll(16, dims=1)
    for ours, theirs in zip(second.latents(tokens), expected, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("unembedding", ["shared", "own"])
def test_every_depth_starts_as_the_trunks_own_prediction(unembedding, make_model, tokens):
    model = make_model("qwen3", head="hydra", unembedding=unembedding)
    output = model(tokens)
    for logits in output.depth_logits:
        torch.testing.assert_close(logits, output.logits, **EXACT)
    drawn = make_model("qwen3", head="hydra", unembedding=unembedding, head_init="random")
    assert not torch.allclose(drawn(tokens).depth_logits[1], output.logits)


def test_the_carry_widens_by_one_embedding_a_depth(make_model):
    heads = make_model("llama", head="hydra").heads
    assert [mlp.input.in_features for mlp in heads.mlps] == [2 * 16, 3 * 16, 4 * 16]
    carry, embed = torch.zeros(1, 3, 16), torch.ones(1, 3, 16)
    mask, positions = torch.ones((1, 1, 3, 3), dtype=torch.bool), torch.zeros((1, 3), dtype=torch.long)
    for depth in (2, 3, 4):
        carry = heads.forward_depth(depth, carry, depth * embed, mask, positions)
    assert carry[0, 0, ::16].tolist() == [0, 2, 3, 4]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"share_depths": True}, "share_depths=True with head='hydra': its depths differ"),
        ({"recycle_stage": "pre_norm"}, "recycle_stage='pre_norm' with head='hydra': no depth hands anything"),
        ({"feature_layers": (0,)}, r"feature_layers=\(0,\) with head='hydra'"),
        ({"head_init": "copy_trunk"}, "head_init='copy_trunk' with head='hydra': these heads have no layer of"),
        ({"hidden_stage": "pre_norm"}, "hidden_stage='pre_norm' and output_norm='none' with head='hydra'"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message, make_trunk):
    with pytest.raises(ValueError, match=message):
        MTPModel.from_trunk(make_trunk("llama"), MTPConfig(head="hydra", **fields))


def test_depths_without_a_head_are_refused(make_model):
    heads = make_model("llama", head="hydra", depth=2).heads
    with pytest.raises(ValueError, match=r"depth=3 is not one of these heads' depths 2 \.\. 2"):
        heads.read(3, torch.zeros(1, 1, 48))
