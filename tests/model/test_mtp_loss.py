"""The multi-token loss of a batch: what counts, what runs, and what it is equal to."""

import pytest
import torch
from torch.nn import functional

from worldmtp.objective import MTPObjective
from worldmtp.objective.loss import evaluation_plan, multi_token_loss, next_token_loss
from worldmtp.objective.plan import Progress

IGNORED = -100
EXACT = {"rtol": 1e-10, "atol": 0.0}


@pytest.fixture
def labels(tokens):
    """A prompt of four tokens is not to be predicted."""
    labels = tokens.clone()
    labels[:, :4] = IGNORED
    return labels


def run(model, tokens, labels, plan, **values):
    objective = MTPObjective.from_dict(values)
    return multi_token_loss(model, model.trunk_features(tokens), tokens, labels, objective, plan)


def test_depth_one_is_the_trunks_own_loss(family, make_model, tokens, labels):
    model = make_model(family)
    total, sums = next_token_loss(model, model.trunk_features(tokens), tokens, labels)
    theirs = model.trunk(tokens, labels=labels).loss
    mean = float(total.detach()) / int(sums.counts[0])
    assert mean == pytest.approx(float(theirs.detach()), rel=1e-6)  # transformers computes its loss in float32


def test_the_total_is_the_weighted_sum_over_depths(make_model, tokens, labels):
    model = make_model("llama")
    objective = MTPObjective.from_dict({"depth_weighting": "harmonic"})
    plan = objective.plan(4, Progress(0), seed=0)
    loss = multi_token_loss(model, model.trunk_features(tokens), tokens, labels, objective, plan)
    expected = torch.zeros((), dtype=torch.float64)
    latents = model.latents(tokens)
    for depth in (2, 3, 4):
        # Rows of 9 tokens with prompts of 4: the 5 answer tokens are predicted from positions 4 - depth .. 8 - depth.
        logits = model.logits_of(latents[depth - 1], depth)[:, 4 - depth : 9 - depth]
        expected += functional.cross_entropy(logits.flatten(0, 1), tokens[:, 4:].flatten(), reduction="sum") / depth
    torch.testing.assert_close(loss.total, expected, **EXACT)
    assert loss.depths == (2, 3, 4)
    assert loss.sums.counts.tolist() == [10, 10, 10]


def test_answers_only_leaves_out_positions_inside_the_prompt(make_model, tokens, labels):
    plan = MTPObjective.from_dict({"frequency": {"answers_only": True}}).plan(4, Progress(0), seed=0)
    sums = run(make_model("llama"), tokens, labels, plan).sums
    # From the prompt's last token on, depth k has 5 - (k - 1) of the 5 answer tokens, in two rows.
    assert sums.counts.tolist() == [8, 6, 4]


def test_a_plan_without_depths_runs_no_head(make_model, tokens, labels):
    model = make_model("llama")
    objective = MTPObjective.from_dict({"frequency": {"every_steps": 2}})
    model.heads.forward_depth = lambda *_: pytest.fail("a head ran")
    loss = run(model, tokens, labels, objective.plan(4, Progress(1), seed=0))
    assert loss.total == 0
    assert loss.depths == ()
    assert loss.sums.counts.shape == (0,)


def test_a_window_stops_the_chain_at_its_last_depth(make_model, tokens, labels):
    model = make_model("llama")
    ran = []
    forward_depth = model.heads.forward_depth
    model.heads.forward_depth = lambda depth, *rest: (ran.append(depth), forward_depth(depth, *rest))[1]
    plan = MTPObjective.from_dict({"window": {"last": 3}}).plan(4, Progress(0), seed=0)
    run(model, tokens, labels, plan)
    assert ran == [2, 3]


def test_parallel_heads_run_only_the_depth_that_was_drawn(make_model, tokens, labels):
    model = make_model("llama", head="medusa")
    ran = []
    forward_depth = model.heads.forward_depth
    model.heads.forward_depth = lambda depth, *rest: (ran.append(depth), forward_depth(depth, *rest))[1]
    plan = MTPObjective.from_dict({"frequency": {"one_random_depth": True}}).plan(4, Progress(0), seed=0)
    loss = run(model, tokens, labels, plan)
    assert ran == list(plan.depths) == list(loss.depths)
    assert len(ran) == 1


def test_the_acceptance_is_the_overlap_with_the_trunk_where_it_gets_there(make_model, tokens):
    model = make_model("llama")
    features = model.trunk_features(tokens)
    loss = multi_token_loss(model, features, tokens, tokens, MTPObjective(), evaluation_plan(4), with_acceptance=True)
    target = model.logits_of(features.post_norm).softmax(dim=-1)
    draft = model.logits_of(model.latents(tokens)[2], 3).softmax(dim=-1)
    # Depth 3 at t says token t+3, and so does the trunk at t+2; rows of 9 tokens have six such positions.
    overlap = torch.minimum(draft[:, :6], target[:, 2:8]).sum()
    torch.testing.assert_close(loss.sums.accepted[1].double(), overlap.double(), **EXACT)


def test_a_kl_objective_measures_the_acceptance_too(make_model, tokens):
    plan = evaluation_plan(4)
    sums = run(make_model("llama"), tokens, tokens, plan, terms={"kl": 1.0}).sums
    assert bool((sums.accepted > 0).all())
    torch.testing.assert_close(sums.tv, sums.counts - sums.accepted, rtol=1e-6, atol=1e-9)
