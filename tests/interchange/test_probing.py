"""Heads trained one way are recognised as such; heads that learned nothing are not."""

import pytest
import torch
from torch.nn import functional
from transformers import Qwen2Config, Qwen2ForCausalLM

from worldmtp.interchange import LayoutError, SpecProbe, export_checkpoint, import_checkpoint, probe_spec
from worldmtp.interchange.probing import SpecScore, choose_spec
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig

VOCAB = 24


def averaging_trunk():
    """One layer that adds to the token's embedding a map of the mean of the past, so a small head can learn it.

    The final norm's gains are of both signs: the states before and after it lie far apart, for any norm that follows.
    """
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
    )
    trunk = Qwen2ForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    layer = trunk.model.layers[0]
    with torch.no_grad():
        for weight in trunk.parameters():
            if weight.ndim == 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 1.5 * weight.shape[-1] ** -0.5)
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.mlp.down_proj):
            part.weight.zero_()
        layer.self_attn.o_proj.weight.mul_(4)
        trunk.model.norm.weight.copy_(torch.randint(2, (32,), generator=generator) * 2.0 - 1)
    return trunk


def with_heads(trunk, **config):
    return MTPModel.from_trunk(trunk, MTPConfig(depth=2, **config), torch.Generator().manual_seed(1)).eval()


def text(seed, rows=32):
    return torch.randint(VOCAB, (rows, 16), generator=torch.Generator().manual_seed(seed))


def train(model, num_steps=80):
    """Depth 2 learns the trunk's own greedy token."""
    optimizer = torch.optim.Adam(model.heads.parameters(), lr=1e-2)
    for step in range(num_steps):
        input_ids = text(100 + step)
        with torch.no_grad():
            features = model.trunk_features(input_ids)
            targets = model.logits_of(features.post_norm)[:, 1:].argmax(dim=-1)
        latent = model.head_latents(features, input_ids, None, None, [2])[2][:, :-1]
        loss = functional.cross_entropy(model.logits_of(latent, 2).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def trained():
    """Of two kinds; the second is MiMo's order with the state before the norm."""
    models = {}
    for concat_order, hidden_stage in (("embedding_first", "post_norm"), ("hidden_first", "pre_norm")):
        model = with_heads(averaging_trunk(), concat_order=concat_order, hidden_stage=hidden_stage)
        train(model)
        models[concat_order, hidden_stage] = model
    return models


@pytest.mark.parametrize("spec", [("embedding_first", "post_norm"), ("hidden_first", "pre_norm")])
def test_trained_heads_tell_how_they_were_trained(trained, spec):
    chosen = choose_spec(probe_spec(trained[spec], text(1)))
    assert (chosen.concat_order, chosen.hidden_stage) == spec
    assert chosen.acceptance > 0.5


def test_acceptance_is_counted_token_by_token(trained):
    model, input_ids = trained["hidden_first", "pre_norm"], text(1, rows=8)
    with torch.no_grad():
        next_logits, ahead_logits = model(input_ids).depth_logits
    hits, row_hits = 0, []
    for row in range(8):
        before = hits
        for t in range(15):  # depth 2 at t and the trunk at t + 1 both predict token t + 2
            hits += int(ahead_logits[row, t].argmax()) == int(next_logits[row, t + 1].argmax())
        row_hits.append((hits - before) / 15)
    best = probe_spec(model, input_ids).scores[0]
    assert best.row_acceptance.tolist() == pytest.approx(row_hits)
    assert best.acceptance == pytest.approx(hits / 120)


def test_the_probe_does_not_depend_on_what_the_model_was_made_for_nor_change_it(trained):
    right = trained["hidden_first", "pre_norm"]
    wrong = with_heads(right.trunk, concat_order="embedding_first", hidden_stage="post_norm")
    wrong.heads.load_state_dict(right.heads.state_dict())
    assert probe_spec(wrong, text(1)).table() == probe_spec(right, text(1)).table()
    assert wrong.heads.layers[0].concat_order == "embedding_first"
    assert right.heads.layers[0].concat_order == "hidden_first"


def test_random_heads_are_refused_with_the_table():
    model = with_heads(averaging_trunk())
    with pytest.raises(LayoutError, match="cannot be told") as raised:
        choose_spec(probe_spec(model, text(1)))
    assert "concat_order     hidden_stage acceptance cross-entropy" in str(raised.value)
    assert str(raised.value).count("_first") >= 4


def test_import_measures_what_the_layout_leaves_open(trained, tmp_path):
    model = trained["hidden_first", "pre_norm"]
    export_checkpoint(model, tmp_path, "mimo")
    read = import_checkpoint(tmp_path, probe_ids=text(1))
    assert (read.config.concat_order, read.config.hidden_stage) == ("hidden_first", "pre_norm")
    with torch.no_grad():
        assert torch.equal(read(text(2)).depth_logits[1], model(text(2)).depth_logits[1])
    drawn = [
        import_checkpoint(tmp_path, generator=torch.Generator().manual_seed(5), **options).world_heads.state_dict()
        for options in ({"probe_ids": text(1)}, {"hidden_stage": "pre_norm"})
    ]
    assert all(torch.equal(weight, drawn[1][name]) for name, weight in drawn[0].items())
    said = import_checkpoint(tmp_path, probe_ids=text(1), hidden_stage="post_norm", concat_order="hidden_first")
    assert said.config.hidden_stage == "post_norm"


def test_import_refuses_to_guess(tmp_path):
    model = with_heads(averaging_trunk(), concat_order="hidden_first", hidden_stage="pre_norm")
    export_checkpoint(model, tmp_path, "mimo")
    with pytest.raises(LayoutError, match="cannot be told"):
        import_checkpoint(tmp_path, probe_ids=text(1))


def made_up(best, rival, constant):
    """Two readings of eight rows."""
    scores = (
        SpecScore("embedding_first", "post_norm", torch.tensor(best), 1.0),
        SpecScore("embedding_first", "pre_norm", torch.tensor(rival), 2.0),
    )
    return SpecProbe(scores, torch.tensor(constant))


def test_the_margin_by_hand():
    """Gaps of .2 and 0 in turn: mean .1, standard deviation sqrt(8 * .01 / 7) = .1069, over sqrt(8) .0378.

    Four standard errors are .1512, more than the gap: refused, though the rows' means are .6 and .5. Gaps of .1 in
    every row have no error, and count; gaps of .015 are too small whatever their error.
    """
    noisy = made_up([0.6] * 8, [0.4, 0.6] * 4, [0.0] * 8)
    with pytest.raises(LayoutError, match=r"by 0\.1000 \(standard error 0\.0378\), and more than 0\.1512"):
        choose_spec(noisy)
    steady = made_up([0.6] * 8, [0.5] * 8, [0.0] * 8)
    assert choose_spec(steady).hidden_stage == "post_norm"
    with pytest.raises(LayoutError, match="beats embedding_first, pre_norm by"):
        choose_spec(made_up([0.6] * 8, [0.585] * 8, [0.0] * 8))


def test_heads_that_guess_the_commonest_token_are_refused():
    with pytest.raises(LayoutError, match="beats a constant guess by 0"):
        choose_spec(made_up([0.6] * 8, [0.1] * 8, [0.6] * 8))


def test_what_is_known_is_not_measured():
    close = made_up([0.6] * 8, [0.6] * 8, [0.6] * 8)
    assert choose_spec(close, hidden_stage="pre_norm").hidden_stage == "pre_norm"


def test_too_little_text_and_other_families_are_refused():
    model = with_heads(averaging_trunk())
    with pytest.raises(ValueError, match="input_ids is 7 rows of 16 tokens"):
        probe_spec(model, text(1, rows=7))
    parallel = with_heads(averaging_trunk(), head="parallel")
    with pytest.raises(TypeError, match="needs sequential heads of depth 2 or more, not 'parallel'"):
        probe_spec(parallel, text(1))
