"""The written-out forward is the trunk's own: prompts, ragged steps, trees; and what is not known by heart is left."""

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from worldmtp.decoding import generate
from worldmtp.decoding.acceptance import Tree
from worldmtp.decoding.cache import CachedTexts
from worldmtp.decoding.lean import lean_runner
from worldmtp.decoding.trunk import HuggingFaceRunner
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.model.lora import add_lora

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def own(dtype=torch.float64, **changes) -> MTPModel:
    config = LlamaConfig(
        **{
            "vocab_size": 11,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 64,
        }
        | changes
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return MTPModel.from_trunk(trunk, MTPConfig(head="eagle", depth=3), torch.Generator().manual_seed(0)).eval()


@torch.no_grad()
def passes(model: MTPModel, runner) -> list:
    """Features of a ragged prompt, of a chain and of a tree after it, at the tokens that are real."""
    texts = CachedTexts(runner, model.trunk.config, 20, model.device)
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]]).bool()
    ids = torch.randint(11, (3, 4), generator=torch.Generator().manual_seed(1))
    prompt = texts.prefill(ids, mask)
    first = prompt.map(lambda hidden: hidden[torch.arange(4) < mask.sum(dim=1)[:, None]][None])
    texts.accept(texts.num_cached * 0)
    chain = texts.forward(ids[:, :3])
    texts.accept(texts.num_cached * 0 + 2)
    tree = Tree((-1, 0, 0, 2))
    return [first, chain, texts.forward(ids, tree.depths, tree.ancestors)]


def assert_equal_features(ours, theirs, tolerance: float) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.post_norm, other.post_norm, atol=tolerance, rtol=0)
        assert len(one.layers) == len(other.layers) == 3
        for layer, expected in zip(one.layers, other.layers, strict=True):
            torch.testing.assert_close(layer, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2},
        {"tie_word_embeddings": True, "head_dim": 12},
        {"attention_bias": True, "mlp_bias": True},
        {"rope_parameters": LLAMA3},
        {"hidden_act": "gelu"},
    ],
    ids=str,
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_llamas(changes, dtype, tolerance):
    model = own(dtype, **changes)
    runner = lean_runner(model)
    assert runner is not None
    assert_equal_features(passes(model, runner), passes(model, HuggingFaceRunner(model)), tolerance)


def test_qwen3_and_states_before_the_norm(tiny_trunk):
    trunk = tiny_trunk("qwen3", vocab_size=11, dtype=torch.float64)
    for norm in (layer.self_attn.q_norm for layer in trunk.model.layers):
        norm.weight.data *= torch.linspace(0.5, 2, len(norm.weight))
    config = MTPConfig(head="sequential", depth=3, hidden_stage="pre_norm")
    model = MTPModel.from_trunk(trunk, config, torch.Generator().manual_seed(0)).eval()
    runner = lean_runner(model)
    assert runner is not None
    for one, other in zip(passes(model, runner), passes(model, HuggingFaceRunner(model)), strict=True):
        torch.testing.assert_close(one.post_norm, other.post_norm, atol=1e-12, rtol=0)
        torch.testing.assert_close(one.pre_norm, other.pre_norm, atol=1e-12, rtol=0)


@torch.no_grad()
def test_weights_that_change_are_used_at_once():
    model = own()
    runner = lean_runner(model)
    before = passes(model, runner)
    layer = model.trunk.model.layers[1]
    layer.self_attn.q_proj.weight.data.add_(0.5)
    layer.mlp.up_proj.weight.data = layer.mlp.up_proj.weight.data * 2
    after = passes(model, runner)
    assert not torch.allclose(before[1].post_norm, after[1].post_norm)
    assert_equal_features(after, passes(model, HuggingFaceRunner(model)), 1e-12)


def test_generate_uses_it_where_it_can(monkeypatch, tiny_trunk):
    calls = []
    forward = HuggingFaceRunner.__call__
    monkeypatch.setattr(HuggingFaceRunner, "__call__", lambda *given: calls.append(1) or forward(*given))
    ids = torch.tensor([[2, 3, 4]])
    generate(own(), ids, max_new_tokens=3)
    assert not calls
    generate(tiny_trunk("gpt2"), ids, max_new_tokens=3, draft="none")
    assert calls


class Scaled(nn.Linear):
    """Not just a linear layer."""


def test_what_is_not_known_by_heart(tiny_trunk):
    assert lean_runner(own(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})) is None
    adapted = own()
    adapted.trunk.model.layers[0].mlp.up_proj = Scaled(32, 48)
    assert lean_runner(adapted) is None
    for part in ("model", "model.layers.0.self_attn"):
        watched = own()
        watched.trunk.get_submodule(part).register_forward_hook(lambda *given: None)
        assert lean_runner(watched) is None
    heads = MTPConfig(head="latent", depth=2)
    sizes = {"vocab_size": 7, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    with torch.random.fork_rng():
        mistral = AutoModelForCausalLM.from_config(MistralConfig(**sizes))
    for trunk in (mistral, tiny_trunk("gpt2"), tiny_trunk("gpt_neox")):
        assert lean_runner(MTPModel.from_trunk(trunk, heads, torch.Generator())) is None


def test_adapters_are_not_left_out():
    """An adapter's layer has its base's weight; the trunk's own forward is taken, and texts are the adapted trunk's."""
    model = own()
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    add_lora(model, config)
    model.eval()
    assert lean_runner(model) is None
    output = generate(model, torch.tensor([[3, 4, 5, 6]]), max_new_tokens=8, draft="none")
    with torch.no_grad():
        log_policy = model.trunk(output.sequences).logits.log_softmax(dim=-1)[0, 3:-1]
    expected = log_policy.gather(1, output.sequences[0, 4:, None])[:, 0]
    torch.testing.assert_close(output.logprobs[0], expected, atol=1e-10, rtol=0)


def test_autocast_is_left_to_the_trunk():
    model = own(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert lean_runner(model) is None
    runner = lean_runner(model)
    plain = passes(model, runner)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # switched on behind the runner's back
        assert_equal_features(passes(model, runner), plain, 0.0)


def test_half_precision_rounds_where_the_trunk_does():
    model = own(torch.bfloat16)
    for ours, theirs in zip(passes(model, lean_runner(model)), passes(model, HuggingFaceRunner(model)), strict=True):
        assert torch.equal(ours.post_norm, theirs.post_norm)
