"""What every family of heads keeps of itself: checkpoints, copies, half precision."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from worldmtp.heads.registry import available_heads
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig

EXACT = {"rtol": 0.0, "atol": 1e-10}


@pytest.fixture(params=available_heads())
def head(request: pytest.FixtureRequest) -> str:
    return request.param


def assert_same(ours, theirs, tokens):
    """Equal bit for bit in every weight; what they compute may differ by how the weights lie in memory."""
    first, second = ours.state_dict(), theirs.state_dict()
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    tolerance = 1e-12 if ours.dtype == torch.float64 else 4 * torch.finfo(ours.dtype).eps
    for one, other in zip(ours(tokens).depth_logits, theirs(tokens).depth_logits, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=tolerance * max(1.0, one.abs().max().item()))


@pytest.mark.parametrize(("kind", "dtype"), [("qwen3", torch.bfloat16), ("gpt2", torch.float64)])
def test_a_checkpoint_is_bit_exact_and_says_what_it_is(head, kind, dtype, make_model, tokens, tmp_path):
    model = make_model(kind, head=head, dtype=dtype, shaken=True)
    model.save_pretrained(tmp_path)
    loaded = MTPModel.from_pretrained(tmp_path).eval()
    assert {weight.dtype for weight in loaded.parameters()} == {dtype}
    assert_same(model, loaded, tokens)
    for name in MTPConfig.__annotations__.keys() - {"model_type", "trunk_config", "auto_map", "sub_configs"}:
        value = getattr(loaded.config, name)
        assert value == getattr(model.config, name), name
        assert value is not None or name in ("head_width", "adapters"), name
    assert loaded.config.head == head


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains(head, dtype, make_model, tokens):
    model = make_model("llama", head=head, dtype=dtype, output_norm="shared", detach_trunk=True)
    output = model(tokens, labels=tokens)
    assert {latent.dtype for latent in output.hidden_states} == {dtype}
    output.loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.heads.parameters())


def test_a_copy_is_independent(head, make_model, tokens):
    model = make_model("llama", head=head, output_norm="shared")
    duplicate = copy.deepcopy(model)
    assert_same(model, duplicate, tokens)
    expected = model(tokens).depth_logits
    with torch.no_grad():
        for weight in duplicate.parameters():
            weight.mul_(1.5)
    for ours, theirs, before in zip(model(tokens).depth_logits, duplicate(tokens).depth_logits, expected, strict=True):
        assert torch.equal(ours, before)
        assert not torch.allclose(theirs, before)


def test_heads_on_a_loaded_trunk_are_those_of_the_generator(head, make_model, make_trunk, tokens, tmp_path):
    make_trunk("llama").save_pretrained(tmp_path)
    trunk = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    config = MTPConfig(head=head, depth=4, initializer_range=0.2)
    before = torch.get_rng_state()
    model = MTPModel.from_trunk(trunk, config, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(make_model("llama", head=head), model, tokens)
