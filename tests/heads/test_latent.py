"""Latent dynamics heads: the equation by hand, the recursion against one written out here, and what is refused."""

import math

import pytest
import torch

from worldmtp.heads.latent import LatentHead, LatentStep
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig

EXACT = {"rtol": 0.0, "atol": 1e-10}


@pytest.mark.parametrize(("hidden_first", "sign"), [(False, 1.0), (True, -1.0)])
def test_a_step_by_hand(hidden_first, sign):
    # One channel: h = 1, E = 3. [E; h] = (3, 1) has mean 2 and variance 1, so LayerNorm gives (1, -1) but for epsilon.
    # The first layer reads the first entry, doubled: 2; GELU(2) = 2 Phi(2); the last layer multiplies by 10.
    # With the hidden state first the entries are (-1, 1): GELU(-2) = -2 Phi(-2).
    step = LatentStep(1, width=1, num_hidden_layers=1, hidden_first=hidden_first, starts_at_zero=True).double()
    first, _, last = step.mlp
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[2.0, 0.0]]))
        first.bias.zero_()
        last.weight.fill_(10.0)
    result = step(torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([[3.0]], dtype=torch.float64))
    entry = sign * 2.0 / math.sqrt(1 + 1e-5)
    gelu = entry * 0.5 * (1 + math.erf(entry / math.sqrt(2)))
    torch.testing.assert_close(result, torch.tensor([[1.0 + 10.0 * gelu]], dtype=torch.float64), **EXACT)


def by_hand(model, tokens, recycled_through=lambda hidden: hidden):
    """Latents of depths 2 .. 4, written out: three linear layers with GELUs between, on the normed concatenation."""
    step = model.heads.steps[0]
    weights = dict(step.named_parameters())
    latent = model.trunk.base_model(tokens).last_hidden_state
    found = []
    for ahead in range(1, 4):
        inputs = torch.cat([model.embed(tokens.roll(-ahead, dims=1)), latent], dim=-1)
        centred = inputs - inputs.mean(dim=-1, keepdim=True)
        normed = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        hidden = normed * weights["norm.weight"] + weights["norm.bias"]
        for place in (0, 2, 4):
            hidden = hidden @ weights[f"mlp.{place}.weight"].T + weights[f"mlp.{place}.bias"]
            if place < 4:
                hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        latent = recycled_through(latent + hidden)
        found.append(latent)
    return found


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_one_dynamics_is_applied_to_its_own_predictions(kind, make_model, tokens):
    model = make_model(kind, head="latent", shaken=True, head_width=24)
    assert len(model.heads.steps) == 1
    latents = model.latents(tokens)
    for ours, theirs in zip(latents[1:], by_hand(model, tokens), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    for mutant in (lambda hidden: hidden.detach() * 0.9, lambda hidden: latents[0]):
        assert not torch.allclose(latents[3], by_hand(model, tokens, mutant)[2], atol=1e-3)


@pytest.mark.parametrize("unembedding", ["shared", "own"])
def test_it_starts_as_the_identity(unembedding, make_model, tokens):
    model = make_model("qwen3", head="latent", unembedding=unembedding)
    output = model(tokens)
    for latent, logits in zip(output.hidden_states, output.depth_logits, strict=True):
        assert torch.equal(latent, output.hidden_states[0])
        torch.testing.assert_close(logits, output.logits, **EXACT)
    drawn = make_model("qwen3", head="latent", unembedding=unembedding, head_init="random")
    assert not torch.allclose(drawn.latents(tokens)[1], output.hidden_states[0])


@torch.no_grad()
def test_before_the_final_norm_it_is_the_identity_there(make_model, tokens):
    # The trunk's own norm over the state before it is the state after it, so logits are the trunk's all the same.
    model = make_model("llama", head="latent", hidden_stage="pre_norm", recycle_stage="pre_norm", output_norm="shared")
    output = model(tokens)
    for logits in output.depth_logits:
        torch.testing.assert_close(logits, output.logits, **EXACT)


def test_sizes_and_sharing(make_model):
    heads = make_model("llama", head="latent").heads
    assert isinstance(heads, LatentHead)
    # Two hidden layers of the trunk's 16 channels between 2 * 16 inputs and 16 outputs.
    shapes = [tuple(weight.shape) for weight in heads.steps[0].mlp.parameters() if weight.dim() == 2]
    assert shapes == [(16, 32), (16, 16), (16, 16)]
    assert heads.unbounded
    own = make_model("llama", head="latent", share_depths=False, head_layers=1, head_width=7).heads
    assert len(own.steps) == 3
    assert not own.unbounded
    shapes = [tuple(weight.shape) for weight in own.steps[2].mlp.parameters() if weight.dim() == 2]
    assert shapes == [(7, 32), (16, 7)]
    alone = make_model("llama", head="latent", depth=1).heads
    assert not alone.unbounded
    assert not list(alone.parameters())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feature_layers": (0,)}, r"feature_layers=\(0,\) with head='latent': it reads the trunk's last hidden state"),
        ({"head_init": "copy_trunk"}, "head_init='copy_trunk' with head='latent': these heads have no layer of"),
        ({"hidden_stage": "pre_norm"}, "hidden_stage='pre_norm' and output_norm='none' with head='latent'"),
        ({"stride": 2}, "stride=2 with head='latent': a chain needs every token in between"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message, make_trunk):
    with pytest.raises(ValueError, match=message):
        MTPModel.from_trunk(make_trunk("llama"), MTPConfig(head="latent", **fields))
