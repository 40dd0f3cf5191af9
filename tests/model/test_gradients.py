"""The three detach switches: exactly zero where they cut, something where they do not, tied or untied."""

import pytest
import torch

from worldmtp.objective import MTPObjective
from worldmtp.objective.loss import evaluation_plan, multi_token_loss


def deep_gradients(model, tokens, chunked):
    """Gradients of the losses of depths 2 .. K alone, by parameter; None where there is no path."""
    latents = model.latents(tokens)
    if chunked:
        features = model.trunk_features(tokens)
        plan = evaluation_plan(model.config.depth)
        loss = multi_token_loss(model, features, tokens, tokens, MTPObjective(), plan).total
    else:
        loss = torch.stack(
            [
                torch.nn.functional.cross_entropy(
                    model.logits_of(latents[k - 1], k, model.config.detach_lm_head)[:, :-k].flatten(0, 1),
                    tokens[:, k:].flatten(),
                    reduction="sum",
                )
                for k in range(2, len(latents) + 1)
            ]
        ).sum()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def moved(gradient):
    return gradient is not None and bool(gradient.any())


def names(model):
    """Names of the embedding, the LM head and the other trunk weights that have a say."""
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    embedding = by_id[id(model.get_input_embeddings().weight)]
    lm_head = by_id[id(model.get_output_embeddings().weight)]
    body = [name for name in by_id.values() if name.startswith("trunk.") and name not in (embedding, lm_head)]
    return embedding, lm_head, body


@pytest.mark.parametrize("tied", [False, True])
def test_all_switches_off_reach_everything(family, make_model, tokens, tied):
    model = make_model(family, tied=tied)
    gradients = deep_gradients(model, tokens, chunked=True)
    embedding, lm_head, body = names(model)
    assert moved(gradients[embedding])
    assert moved(gradients[lm_head])
    assert [name for name in body if not moved(gradients[name])] == []


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("detach_lm_head", [False, True])
def test_a_tied_weight_gets_the_gradients_of_the_paths_left_open(make_model, tokens, detach_lm_head, chunked):
    # An untied twin with equal weights tells the two paths apart.
    tied = make_model("llama", tied=True, detach_lm_head=detach_lm_head)
    untied = make_model("llama", detach_lm_head=False)
    state = tied.state_dict()
    untied.load_state_dict(state)
    apart = deep_gradients(untied, tokens, chunked)
    embedding, lm_head, _ = names(untied)
    expected = apart[embedding] if detach_lm_head else apart[embedding] + apart[lm_head]
    together = deep_gradients(tied, tokens, chunked)
    torch.testing.assert_close(together[names(tied)[0]], expected, rtol=0.0, atol=1e-12)


def test_depth_one_is_never_detached(make_model, tokens):
    model = make_model("gpt2", detach_trunk=True, detach_embedding=True, detach_lm_head=True)
    plain = make_model("gpt2", depth=1)
    for either in (model, plain):
        either(tokens, labels=tokens).loss.backward()
    expected = dict(plain.trunk.named_parameters())
    for name, parameter in model.trunk.named_parameters():
        # Bit for bit: in RL the policy's gradient is what it is without heads.
        assert torch.equal(parameter.grad, expected[name].grad), name
