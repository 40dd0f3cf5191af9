"""What the model computes: the trunk unchanged, causal heads, padding and packing that make no difference."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, DynamicCache, Gemma2Config, GraniteConfig

from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.model.trunk import TrunkFeatures
from worldmtp.objective import MTPObjective
from worldmtp.objective.plan import CoefSchedule, DepthWindow

EXACT = {"rtol": 0.0, "atol": 1e-10}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_trunks_logits_are_hugging_faces(family, make_trunk, make_model, tokens, dtype):
    expected = make_trunk(family, dtype=dtype)(tokens).logits
    output = make_model(family, dtype=dtype)(tokens)
    assert torch.equal(output.logits, expected)
    assert torch.equal(output.depth_logits[0], expected)
    assert [tuple(logits.shape) for logits in output.depth_logits] == [(2, 9, 31)] * 4
    assert all(logits.dtype == dtype for logits in output.depth_logits)


@pytest.mark.parametrize(
    "config",
    [
        CohereConfig(logit_scale=0.25, pad_token_id=0, bos_token_id=1, eos_token_id=1),
        GraniteConfig(logits_scaling=3.0, pad_token_id=0, bos_token_id=1, eos_token_id=1),
        Gemma2Config(final_logit_softcapping=0.05, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=1),
    ],
    ids=["cohere", "granite", "gemma2"],
)
def test_logits_that_a_trunk_scales_or_caps_are_scaled_and_capped_at_every_depth(config, tokens):
    sizes = {"vocab_size": 31, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    for name, value in {**sizes, "num_attention_heads": 4, "num_key_value_heads": 2}.items():
        setattr(config, name, value)
    if config.model_type == "gemma2":
        config.layer_types = ["sliding_attention", "full_attention"]
    trunk = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    expected = trunk(tokens).logits
    model = MTPModel.from_trunk(trunk, MTPConfig(depth=2))
    output = model(tokens)
    torch.testing.assert_close(output.logits, expected)
    latent = output.hidden_states[1]
    raw = latent @ trunk.get_output_embeddings().weight.T
    by_hand = {"cohere": raw * 0.25, "granite": raw / 3.0, "gemma2": 0.05 * torch.tanh(raw / 0.05)}
    torch.testing.assert_close(output.depth_logits[1], by_hand[config.model_type])
    torch.testing.assert_close(model.logits_of(latent, detach_lm_head=True), by_hand[config.model_type])


def test_the_first_latent_is_what_the_lm_head_reads(family, make_model, tokens):
    model = make_model(family)
    output = model(tokens)
    torch.testing.assert_close(model.logits_of(output.hidden_states[0]), output.logits, **EXACT)
    assert torch.equal(model.base_model(tokens).last_hidden_state, output.hidden_states[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_leaves_no_nan_in_losses_or_gradients(family, make_model, tokens, side):
    model = make_model(family)
    attention_mask = torch.ones_like(tokens)
    attention_mask[0, : 3 if side == "left" else 0] = 0
    attention_mask[1, 9 - (3 if side == "right" else 0) :] = 0
    labels = tokens.masked_fill(attention_mask == 0, -100)
    model(tokens, attention_mask=attention_mask, labels=labels).loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients) > 10
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_packed_documents_have_the_loss_of_separate_ones(family, make_model):
    model = make_model(family, depth=3)
    generator = torch.Generator().manual_seed(5)
    first, second = (torch.randint(2, 31, (1, length), generator=generator) for length in (5, 4))
    position_ids = torch.cat([torch.arange(5), torch.arange(4)])[None]
    row = torch.cat([first, second], dim=1)
    packed = model(row, position_ids=position_ids, labels=row)
    alone = [model(document, labels=document).depth_losses for document in (first, second)]
    # Documents of 5 and 4 tokens have 4 + 3, 3 + 2, 2 + 1 targets at depths 1, 2, 3.
    weights = torch.tensor([[4.0, 3.0, 2.0], [3.0, 2.0, 1.0]], dtype=torch.float64)
    expected = (torch.stack(alone) * weights).sum(dim=0) / weights.sum(dim=0)
    torch.testing.assert_close(packed.depth_losses, expected, **EXACT)


def test_packing_with_a_mask_is_refused_for_sliding_attention(make_model, tokens):
    model = make_model("qwen3")
    model.trunk.config.layer_types = ["sliding_attention", "full_attention"]
    position_ids = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    with pytest.raises(ValueError, match="not supported for a trunk with sliding attention; pack without padding"):
        model(tokens, attention_mask=torch.ones_like(tokens), position_ids=position_ids)


def test_depth_one_alone_has_hugging_faces_loss(family, make_trunk, make_model, tokens):
    labels = tokens.clone()
    labels[:, :3] = -100
    expected = make_trunk(family, dtype=torch.float32)(tokens, labels=labels).loss
    model = make_model(family, dtype=torch.float32, depth=1)
    output = model(tokens, labels=labels)
    torch.testing.assert_close(output.loss, expected, rtol=1e-6, atol=1e-6)
    assert len(output.depth_logits) == len(output.hidden_states) == len(output.depth_losses) == 1
    shared = make_trunk(family, dtype=torch.float32)(tokens, labels=labels, num_items_in_batch=20).loss
    torch.testing.assert_close(model(tokens, labels=labels, num_items_in_batch=20).loss, shared, rtol=1e-6, atol=1e-6)


def test_the_loss_is_depth_one_plus_lambda_times_the_mean_of_the_others_over_its_targets(make_model, tokens):
    model = make_model("llama")
    output = model(tokens, labels=tokens)
    targets = [tokens[:, k:] for k in range(1, 5)]
    losses = [
        torch.nn.functional.cross_entropy(
            output.depth_logits[k - 1][:, :-k].reshape(-1, 31), targets[k - 1].reshape(-1)
        )
        for k in range(1, 5)
    ]
    torch.testing.assert_close(output.depth_losses, torch.stack(losses), **EXACT)
    # Two rows of nine: 16, 14, 12 and 10 targets of depths 1 .. 4; every sum is divided by the first number.
    later = (14 * losses[1] + 12 * losses[2] + 10 * losses[3]) / 16
    torch.testing.assert_close(output.loss, losses[0] + 0.3 * later / 3, **EXACT)
    objective = MTPObjective(coef=CoefSchedule(start=0.5), depth_weighting="uniform", window=DepthWindow(last=2))
    output = model(tokens, labels=tokens, objective=objective)
    torch.testing.assert_close(output.loss, losses[0] + 0.5 * 14 * losses[1] / 16, **EXACT)
    assert output.depth_losses.isnan().tolist() == [False, False, True, True]


@pytest.mark.parametrize("detach_lm_head", [False, True])
def test_the_loss_without_depth_logits_is_the_same_with_the_same_gradients(make_model, tokens, detach_lm_head):
    results = []
    for compute_depth_logits in (True, False):
        model = make_model("gpt2", tied=True, detach_lm_head=detach_lm_head)
        output = model(tokens, labels=tokens, compute_depth_logits=compute_depth_logits)
        output.loss.backward()
        results.append((output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (whole, whole_gradients), (lean, lean_gradients) = results
    assert whole.depth_logits is not None
    assert lean.depth_logits is None
    torch.testing.assert_close(lean.loss, whole.loss, **EXACT)
    torch.testing.assert_close(lean_gradients, whole_gradients, **EXACT)


def test_without_labels_and_depth_logits_only_the_trunk_runs(make_model, tokens):
    model = make_model("llama")
    model.heads.register_forward_pre_hook(lambda *_: pytest.fail("the heads ran"))
    model.heads.forward_depth = lambda *_: pytest.fail("the heads ran")
    output = model(tokens, compute_depth_logits=False)
    assert output.depth_logits is None
    assert len(output.hidden_states) == 1


def test_accumulated_micro_batches_sum_to_the_whole_batch(make_model, tokens):
    model = make_model("llama", depth=3)
    attention_mask = torch.ones_like(tokens)
    attention_mask[1, 6:] = 0
    labels = tokens.masked_fill(attention_mask == 0, -100)
    num_items = 8 + 5  # of the next token, in rows of 9 and 6
    whole = model(tokens, attention_mask=attention_mask, labels=labels).loss
    parts = [
        model(tokens[n : n + 1], attention_mask[n : n + 1], labels=labels[n : n + 1], num_items_in_batch=num_items).loss
        for n in range(2)
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole, **EXACT)


def test_a_cached_prefix_is_refused_where_heads_are_needed(make_model, tokens):
    model = make_model("llama")
    cache = DynamicCache()
    first = model(tokens[:, :5], compute_depth_logits=False, past_key_values=cache, use_cache=True)
    second = model(
        tokens[:, 5:],
        compute_depth_logits=False,
        past_key_values=first.past_key_values,
        position_ids=torch.arange(5, 9)[None],
        use_cache=True,
    )
    torch.testing.assert_close(second.logits, model(tokens).logits[:, 5:], **EXACT)
    with pytest.raises(ValueError, match="need the whole prefix and past_key_values holds a part of it"):
        model(tokens[:, :1], past_key_values=cache)


def test_latents_of_fewer_depths_and_of_given_trunk_states(make_model, tokens):
    model = make_model("gpt_neox")
    latents = model.latents(tokens)
    hidden = model.base_model(tokens).last_hidden_state
    given = model.latents(tokens, features=TrunkFeatures(hidden))
    fewer = model.latents(tokens, depths=2)
    assert len(latents) == len(given) == 4
    assert len(fewer) == 2
    assert all(torch.equal(a, b) for a, b in zip(latents, given, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(latents[:2], fewer, strict=True))
    with pytest.raises(ValueError, match=r"depths=5 is outside 1 \.\. 4"):
        model.latents(tokens, depths=5)


@pytest.mark.parametrize(
    ("kind", "share_depths"),
    [("llama", False), ("llama", True), ("qwen3", False), ("gpt2", False), ("gpt_neox", False)],
)
def test_heads_learn_a_periodic_text(make_model, kind, share_depths):
    model = make_model(kind, dtype=torch.float32, depth=3, share_depths=share_depths).train()
    period = torch.tensor([3, 7, 4, 9, 4])
    phase = torch.arange(5)[:, None]
    input_ids = period[(torch.arange(12) + phase) % 5]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    initial = model(input_ids, labels=input_ids).depth_losses.detach()
    # At position 0 depth 1 cannot tell the two 4s apart; depths 2 and 3 have read the token in between. They have 50
    # and 45 targets, and one wrong answer costs at least log 2: below log(2) / 50 on average none is wrong.
    goal = torch.tensor([0.1 * initial[0], math.log(2) / 50, math.log(2) / 50])
    for _ in range(150):
        output = model(input_ids, labels=input_ids)
        if torch.all(output.depth_losses < goal):
            break
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert torch.all(output.depth_losses < goal)


def test_the_loss_without_depth_logits_unembeds_each_depth_once_and_keeps_no_logits(make_model, tokens):
    """The layer runs once a depth where logits are asked for, and not at all where they are not."""
    model = make_model("llama")
    num_rows = []
    model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: num_rows.append(args[0].shape[:-1].numel())
    )
    output = model(tokens, labels=tokens, compute_depth_logits=False)
    assert output.logits is None
    assert output.depth_logits is None
    assert num_rows == []  # the chunks are unembedded by the weight itself, none by the layer
    full = model(tokens, labels=tokens)
    assert num_rows == [tokens.numel()] * model.config.depth
    assert torch.equal(full.logits, full.depth_logits[0])
    torch.testing.assert_close(output.loss, full.loss)
