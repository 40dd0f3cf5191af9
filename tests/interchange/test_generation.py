"""Exported heads in transformers' own assisted decoding, and trunks of several kinds of layers under our heads."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Glm4MoeConfig, PreTrainedModel
from transformers.modeling_layers import MtpModel

from worldmtp.heads.block import make_block_spec
from worldmtp.interchange import export_checkpoint
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig


def glm_46() -> PreTrainedModel:
    """As deep as GLM-4.5-Air, since transformers looks for the heads of this class at layers 46 and 92 only."""
    config = Glm4MoeConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=46,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=16,
        moe_intermediate_size=8,
        n_routed_experts=2,
        num_experts_per_tok=1,
        first_k_dense_replace=45,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    trunk = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        trunk.lm_head.weight.mul_(20)  # far from ties
        trunk.model.norm.weight.copy_(torch.linspace(0.5, 1.5, 16))
    return trunk.eval()


def test_transformers_drafts_with_the_exported_heads(tmp_path, input_ids):
    model = MTPModel.from_trunk(
        glm_46(), MTPConfig(depth=2, initializer_range=0.2), torch.Generator().manual_seed(1)
    ).eval()
    with torch.no_grad():
        model.heads.output.norms[0].weight.copy_(torch.linspace(1.5, 0.5, 16))
    export_checkpoint(model, tmp_path, "glm4_moe")
    base = AutoModelForCausalLM.from_pretrained(tmp_path).eval()

    with torch.no_grad():
        ours = model(input_ids).depth_logits[1][:, :-1]
        heads = MtpModel.from_pretrained(base).eval()
        hidden = base.model(input_ids=input_ids).last_hidden_state[:, :-1]
        positions = torch.arange(1, input_ids.shape[1]).expand(len(input_ids), -1)
        theirs = base.lm_head(heads.forward_layer(0, hidden, positions, None, input_ids=input_ids[:, 1:]))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)

    prompt = input_ids[:1]
    options = {"max_new_tokens": 16, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    assert torch.equal(base.generate(prompt, use_mtp=True, **options), base.generate(prompt, **options))


@pytest.mark.parametrize("layout", ["deepseek_v3", "glm4_moe", "qwen3_next", "qwen3_5"])
def test_heads_are_causal_on_trunks_of_every_kind_of_layer(publish, input_ids, layout):
    """With padding too: token j is read by depth 2 from position j - 1 on, and by no earlier one."""
    # In float64, so that tokens grouped otherwise by expert stay within 1e-10; grouped kernels have no float64.
    trunk = publish(layout).trunk.double()
    trunk.set_experts_implementation("eager")
    config = MTPConfig(depth=2, initializer_range=0.2)
    model = MTPModel.from_trunk(trunk, config, torch.Generator().manual_seed(1)).eval()
    assert model.config.head_block == "trunk"
    mask = torch.ones_like(input_ids)
    mask[1, :3] = 0
    changed = input_ids.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 40
    with torch.no_grad():
        before, after = (model(ids, attention_mask=mask).depth_logits[1] for ids in (input_ids, changed))
    assert torch.isfinite(before).all()
    torch.testing.assert_close(before[:, :6], after[:, :6], atol=1e-10, rtol=0)
    assert (before[:, 6] - after[:, 6]).abs().amax(dim=-1).min() > 1e-3


@pytest.mark.parametrize(
    ("layout", "changes", "sparse"),
    [
        ("deepseek_v3", {}, True),
        ("glm4_moe", {}, True),
        ("glm4_moe", {"first_k_dense_replace": 4}, False),
        ("qwen3_next", {}, True),
        ("qwen3_next", {"decoder_sparse_step": 2}, True),
        ("qwen3_next", {"decoder_sparse_step": 3}, False),
        ("qwen3_next", {"mlp_only_layers": [3]}, False),
        ("qwen3_next", {"mlp_only_layers": [0]}, True),
        ("qwen3_5", {}, False),
    ],
)
def test_the_heads_layer_is_of_the_last_layers_kind(make_tiny, layout, changes, sparse):
    trunk = make_tiny(layout, **changes)
    layer = make_block_spec("trunk", trunk).make_layer()
    assert hasattr(layer.mlp, "experts") == sparse
    assert hasattr(layer.mlp, "experts") == hasattr(trunk.model.layers[-1].mlp, "experts")
    assert hasattr(layer, "self_attn")


def test_norms_are_the_trunks_where_it_ends_in_linear_attention(make_tiny, input_ids):
    """Zero-centred, and not the gated norm inside the last layer, which takes a second argument."""
    trunk = make_tiny("qwen3_next", layer_types=["full_attention", *["linear_attention"] * 3])
    model = MTPModel.from_trunk(trunk, MTPConfig(depth=2)).eval()
    norm = model.heads.layers[0].embedding_norm
    assert type(norm) is type(trunk.model.norm)
    assert not norm.weight.any()
    with torch.no_grad():
        assert torch.isfinite(model(input_ids).depth_logits[1]).all()
