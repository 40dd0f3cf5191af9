"""The parallel families by themselves: their equations by hand, how they start, what they refuse."""

import math
import re

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from worldmtp.heads.base import ZeroLinear
from worldmtp.heads.registry import available_heads, head_class
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.model.trunk import TrunkFeatures

EXACT = {"rtol": 0.0, "atol": 1e-10}
PARALLEL = [name for name in available_heads() if head_class(name).kind == "parallel"]
POINTWISE = [name for name in PARALLEL if name != "parallel"]


@pytest.fixture(params=["llama", "qwen3", "gpt2"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def latent_of(model, hidden, depth=2):
    """A depth's latent of one hidden state of two channels."""
    carry = model.heads.begin(TrunkFeatures(post_norm=hidden))
    positions = torch.zeros((1, 1), dtype=torch.long)
    return model.heads.forward_depth(depth, carry, torch.ones((1, 1, 1, 1), dtype=torch.bool), positions)


def zeros(*shape):
    return torch.zeros(shape, dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------------------
# Their equations, worked by hand. One input channel of a 16-channel state is set, and one weight on each path.
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hidden() -> torch.Tensor:
    state = zeros(1, 1, 16)
    state[..., 0], state[..., 1] = 2.0, -3.0
    return state


def cleared(model):
    """All of the heads' weights at zero."""
    with torch.no_grad():
        for weight in model.heads.parameters():
            weight.zero_()
    return model


@torch.no_grad()
def test_blockwise_computes_its_equation(make_model, hidden):
    model = cleared(make_model("llama", head="blockwise", depth=3, head_width=2))
    wide = model.heads.wide[0]
    wide.weight[0, 0], wide.bias[0] = 4.0, -1.0  # a_0 = ReLU(4 * 2 - 1) = 7
    wide.weight[1, 1] = 5.0  # a_1 = ReLU(5 * -3) = 0
    for number, projection in enumerate(model.heads.projections, start=1):
        projection.weight[2, 0], projection.weight[2, 1], projection.bias[0] = number, 100.0, 0.5
    expected = hidden.clone()
    expected[..., 0] = 2.5  # 2 + 0.5
    expected[..., 2] = 7.0  # 0 + 1 * 7 + 100 * 0
    torch.testing.assert_close(latent_of(model, hidden, depth=2), expected, **EXACT)
    expected[..., 2] = 14.0  # the second projection of the same a
    torch.testing.assert_close(latent_of(model, hidden, depth=3), expected, **EXACT)


@torch.no_grad()
def test_medusas_blocks_are_stacked_and_separate(make_model, hidden):
    model = cleared(make_model("llama", head="medusa", depth=2, head_layers=2))
    first, second = (block.linear for block in model.heads.blocks[0])
    first.weight[2, 0] = 0.5  # channel 2 becomes 0 + SiLU(0.5 * 2) = s
    second.weight[3, 2], second.bias[3] = 2.0, 1.0  # channel 3 becomes 0 + SiLU(2 s + 1)
    # SiLU(x) = x / (1 + exp(-x)); SiLU(0) = 0, so that all else is passed on.
    s = 1.0 / (1.0 + math.exp(-1.0))
    expected = hidden.clone()
    expected[..., 2] = s
    expected[..., 3] = (2 * s + 1) / (1.0 + math.exp(-(2 * s + 1)))
    torch.testing.assert_close(latent_of(model, hidden), expected, **EXACT)


@torch.no_grad()
def test_modulated_computes_its_equation(make_model, hidden):
    model = cleared(make_model("llama", head="modulated", depth=3, head_width=1))
    model.heads.depth_embeddings[0].weight[0, 0] = -1.0  # e_2: channel 0 becomes 2 - 1 = 1
    (mlp,) = model.heads.mlps[0]
    mlp.up.weight[0, 0], mlp.up.bias[0] = 3.0, -2.0  # GELU(3 * 1 - 2) = GELU(1) = Phi(1)
    mlp.down.weight[1, 0], mlp.down.bias[2] = 10.0, 4.0
    phi = 0.5 * (1.0 + math.erf(1.0 / math.sqrt(2.0)))
    expected = hidden.clone()
    expected[..., 0] = 1.0
    expected[..., 1] = -3.0 + 10.0 * phi
    expected[..., 2] = 4.0
    torch.testing.assert_close(latent_of(model, hidden, depth=2), expected, **EXACT)
    torch.testing.assert_close(latent_of(model, hidden, depth=3), hidden, **EXACT)  # an MLP of its own, still at zero


@torch.no_grad()
def test_linear_leaves_the_state_to_its_matrix(make_model, tokens):
    model = cleared(make_model("llama", head="linear", depth=3))
    model.heads.unembedding(3).weight[5, 1] = 2.0
    output = model(tokens)
    assert torch.equal(output.hidden_states[2], output.hidden_states[0])
    assert not output.depth_logits[1].any()
    torch.testing.assert_close(output.depth_logits[2][..., 5], 2.0 * output.hidden_states[0][..., 1], **EXACT)


@torch.no_grad()
def test_pre_norm_states_and_norms(make_model, hidden):
    # Channels 2 and -3 of 16: the mean square is 13 / 16, and the norm's epsilon 1e-6 is below the tolerance.
    model = make_model("llama", head="medusa", hidden_stage="pre_norm", output_norm="own")
    features = model.trunk_features(torch.tensor([[3, 4, 5]]))
    assert torch.equal(model.heads.begin(features), features.pre_norm)
    assert not torch.allclose(features.pre_norm, features.post_norm)
    model = make_model("llama", head="medusa", output_norm="own")
    expected = hidden / math.sqrt(13 / 16)
    torch.testing.assert_close(latent_of(model, hidden), expected, rtol=1e-5, atol=0.0)


# ---------------------------------------------------------------------------------------------------------------------
# How they start
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["blockwise", "medusa"])
@pytest.mark.parametrize("options", [{}, {"hidden_stage": "pre_norm", "output_norm": "shared"}], ids=["post", "pre"])
def test_every_depth_starts_as_the_lm_head(head, kind, options, make_model, make_trunk, tokens):
    expected = make_trunk(kind)(tokens).logits
    for unembedding in ("own", "shared"):
        model = make_model(kind, head=head, unembedding=unembedding, **options)
        assert (model.output_layer(2) is model.get_output_embeddings()) == (unembedding == "shared")
        for logits in model(tokens).depth_logits:
            torch.testing.assert_close(logits, expected, **EXACT)


def test_modulated_starts_at_its_embeddings_distance_from_the_lm_head(kind, make_model, tokens):
    model = make_model(kind, head="modulated")
    output = model(tokens)
    lm_head = model.get_output_embeddings().weight
    for depth, embedding in enumerate(model.heads.depth_embeddings, start=2):
        moved = lm_head @ embedding.weight[0]
        torch.testing.assert_close(output.depth_logits[depth - 1] - output.logits, moved.expand(2, 7, 19), **EXACT)
        # 16 numbers of standard deviation initializer_range = 0.2: beyond 1.0, five of them, is not chance.
        assert 0.0 < embedding.weight.abs().max() < 1.0


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_copies_of_the_last_layer_start_as_the_trunk(kind, make_model, tokens):
    # The head is the trunk's last layer and final norm on the same input: the trunk itself is the other computation.
    attention_mask = torch.ones_like(tokens)
    attention_mask[1, :3] = 0
    model = make_model(kind, head="parallel", head_init="copy_trunk")
    assert model.config.feature_layers == (0,)
    trunk, *later = model.latents(tokens, attention_mask)
    for latents in later:
        torch.testing.assert_close(latents[0], trunk[0], **EXACT)
        torch.testing.assert_close(latents[1, 3:], trunk[1, 3:], **EXACT)


def test_the_layer_is_the_trunks_where_it_serves(kind, make_model):
    model = make_model(kind, head="parallel")
    expected = {"llama": LlamaDecoderLayer, "qwen3": Qwen3DecoderLayer, "gpt2": LlamaDecoderLayer}[kind]
    assert [type(block) for block in model.heads.blocks] == [expected] * 3
    assert all(block.self_attn.layer_idx == 0 for block in model.heads.blocks)


def test_a_trunk_of_another_form_has_no_layer_to_copy(make_model):
    with pytest.raises(ValueError, match="head_init='copy_trunk' needs a layer in the trunk of the heads' form"):
        make_model("gpt2", head="parallel", head_init="copy_trunk")


def test_parallel_branches_off_where_it_is_told(make_model, tokens):
    model = make_model("llama", head="parallel", num_layers=3)
    assert model.config.feature_layers == (1,)
    hidden_states = model.base_model(tokens, output_hidden_states=True).hidden_states
    torch.testing.assert_close(model.heads.begin(model.trunk_features(tokens)), hidden_states[2], **EXACT)
    top = make_model("llama", head="parallel", feature_layers=())
    features = top.trunk_features(tokens)
    assert features.layers == ()
    assert torch.equal(top.heads.begin(features), features.post_norm)
    before_norm = make_model("llama", head="parallel", feature_layers=(), hidden_stage="pre_norm")
    last_layer = make_model("llama", head="parallel", feature_layers=(-1,))
    for ours, theirs in zip(before_norm.latents(tokens), last_layer.latents(tokens), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    single = make_model("llama", head="parallel", num_layers=1)
    assert single.config.feature_layers == ()
    assert single(tokens).depth_logits[3].isfinite().all()


@pytest.mark.parametrize("head", POINTWISE)
def test_random_initialisation_copies_and_zeroes_nothing(head, make_model, tokens):
    model = make_model("llama", head=head, head_init="random", unembedding="own")
    assert [module for module in model.heads.modules() if isinstance(module, ZeroLinear)] == []
    lm_head = model.get_output_embeddings().weight
    assert [depth for depth in (2, 3, 4) if torch.equal(model.heads.unembedding(depth).weight, lm_head)] == []
    assert all(weight.any() for weight in model.heads.parameters() if weight.ndim > 1)


def test_what_each_family_takes_by_default(make_model):
    fields = ("output_norm", "unembedding", "head_width", "head_layers", "share_depths")
    taken = {
        name: tuple(getattr(make_model("llama", head=name).config, field) for field in fields) for name in PARALLEL
    }
    assert {name: taken[name] for name in ("blockwise", "linear", "medusa", "modulated", "parallel")} == {
        "blockwise": ("none", "shared", 64, 1, False),  # 4 * 16
        "linear": ("none", "own", None, 1, False),
        "medusa": ("none", "own", None, 1, False),
        "modulated": ("none", "shared", 64, 1, False),
        "parallel": ("shared", "shared", None, 1, False),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Shared depths and strides
# ---------------------------------------------------------------------------------------------------------------------


def test_depths_that_share_the_mlp_differ_by_their_embeddings_alone(make_model, tokens):
    model = make_model("llama", head="modulated", share_depths=True, unembedding="own", output_norm="own", shaken=True)
    heads = model.heads
    assert (len(heads.mlps), len(heads.depth_embeddings), len(heads.output.norms)) == (1, 3, 1)
    assert heads.unembedding(2) is heads.unembedding(4)
    _, second, third, _ = model.latents(tokens)
    assert not torch.allclose(second, third)
    with torch.no_grad():
        heads.depth_embeddings[1].weight.copy_(heads.depth_embeddings[0].weight)
    _, second, third, fourth = model.latents(tokens)
    assert torch.equal(second, third)
    assert not torch.allclose(second, fourth)


@pytest.mark.parametrize("head", [name for name in PARALLEL if name != "modulated"])
def test_sharing_is_refused_where_depths_would_be_equal(head, make_model):
    with pytest.raises(ValueError, match=f"share_depths=True with head='{head}'"):
        make_model("llama", head=head, share_depths=True)


@pytest.mark.parametrize("head", PARALLEL)
def test_a_stride_moves_the_targets(head, make_model, tokens):
    model = make_model("llama", head=head, depth=3, stride=2, shaken=True)
    output = model(tokens, labels=tokens)
    for depth, offset in ((1, 1), (2, 3), (3, 5)):
        logprobs = output.depth_logits[depth - 1].log_softmax(dim=-1)
        taken = [logprobs[row, t, tokens[row, t + offset]] for row in range(2) for t in range(7 - offset)]
        torch.testing.assert_close(output.depth_losses[depth - 1], -sum(taken) / len(taken), **EXACT)


# ---------------------------------------------------------------------------------------------------------------------
# What they refuse
# ---------------------------------------------------------------------------------------------------------------------

REFUSED = {
    "head_width": ({"head_width": 8}, ("linear", "medusa", "parallel")),
    "head_layers": ({"head_layers": 2}, ("blockwise", "linear", "parallel")),
    "feature_layers": ({"feature_layers": (0,)}, ("blockwise", "linear", "medusa", "modulated")),
    "concat_order": ({"concat_order": "hidden_first"}, ("blockwise", "linear", "medusa", "modulated", "parallel")),
    "recycle_stage": ({"recycle_stage": "pre_norm"}, ("blockwise", "linear", "medusa", "modulated", "parallel")),
}


@pytest.mark.parametrize(
    ("name", "head", "options"), [(name, head, options) for name, (options, heads) in REFUSED.items() for head in heads]
)
def test_fields_that_a_family_does_not_read_are_refused(name, head, options, make_model):
    value = re.escape(repr(options[name]))
    with pytest.raises(ValueError, match=f"{name}={value} with head='{head}': .*; leave {name} out, or choose a"):
        make_model("llama", head=head, **options)


@pytest.mark.parametrize("head", POINTWISE)
def test_heads_without_decoder_layers_copy_none(head, make_model):
    with pytest.raises(ValueError, match=f"head_init='copy_trunk' with head='{head}': these heads have no layer of"):
        make_model("llama", head=head, head_init="copy_trunk")


def test_the_lm_head_is_not_given_states_without_a_norm(make_model):
    message = r"hidden_stage='pre_norm' and output_norm='none' with head='\w+': the LM head's weights expect normed"
    for head in ("blockwise", "medusa", "modulated"):
        with pytest.raises(ValueError, match=message):
            make_model("llama", head=head, hidden_stage="pre_norm")
    with pytest.raises(ValueError, match="output_norm='none' with head='parallel': the LM head's weights expect"):
        make_model("llama", head="parallel", output_norm="none")
    # Matrices of their own, drawn afresh, may read what they like.
    make_model("llama", head="linear", hidden_stage="pre_norm")
    make_model("llama", head="medusa", hidden_stage="pre_norm", head_init="random")
    make_model("llama", head="parallel", output_norm="none", unembedding="own", head_init="random")


def test_the_linear_heads_have_matrices_of_their_own(make_trunk):
    with pytest.raises(ValueError, match="unembedding='shared' with head='linear': the LM head on the trunk's own"):
        MTPModel.from_trunk(make_trunk("llama"), MTPConfig(head="linear", unembedding="shared"))


def test_where_parallel_cannot_branch_off(make_model):
    with pytest.raises(ValueError, match=r"feature_layers=\[0, 1\] with head='parallel': the heads branch off at one"):
        make_model("llama", head="parallel", feature_layers=(0, 1))
    with pytest.raises(
        ValueError, match=r"hidden_stage='pre_norm' with feature_layers=\[0\]: the heads read the outputs"
    ):
        make_model("llama", head="parallel", hidden_stage="pre_norm")
