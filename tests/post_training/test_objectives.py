"""What each field of the objective does in a trainer: which heads run in which step, with which loss and lambda."""

import copy
from collections import Counter

import pytest
import torch
from datasets import Dataset
from torch.nn import functional

FULL = {
    "terms": {"ce": 1.0, "kl": 0.5, "tv": 0.25, "e2e_tv": 0.75, "latent": 2.0},
    "depth_weighting": "harmonic",
    "coef": {"start": 0.4},
}
ONE_BATCH = {"max_steps": 1, "per_device_train_batch_size": 32}


def logged(trainer, name):
    """Values of a metric by the number of steps done when it was logged."""
    return {record["step"]: record[name] for record in trainer.state.log_history if name in record}


def count_runs(trainer):
    """How often each depth of parallel heads runs, by step; filled in during training."""
    runs = Counter()
    heads = trainer.mtp_forward.model.heads
    forward = heads.forward_depth

    def counted(depth, *args, **kwargs):
        runs[trainer.state.global_step, depth] += 1
        return forward(depth, *args, **kwargs)

    heads.forward_depth = counted
    return runs


@pytest.fixture
def run(make_trainer, make_model):
    """Train parallel heads under an objective; the trainer and which depths ran when."""

    def make(objective, depth=3, head="parallel", eval_dataset=None, **options):
        trainer = make_trainer(
            make_model(depth=depth, head=head), mtp_objective=objective, eval_dataset=eval_dataset, **options
        )
        runs = count_runs(trainer)
        trainer.train()
        return trainer, runs

    return make


# ---------------------------------------------------------------------------------------------------------------------
# The loss
# ---------------------------------------------------------------------------------------------------------------------


def terms_by_hand(model, rows):
    """Sums over targets, from whole logits of one unpadded row at a time; depths 2 and 3."""
    sums = {name: [0.0, 0.0] for name in ("ce", "kl", "tv", "latent", "accepted")}
    e2e, num_targets = 0.0, 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), row["labels"]
        output = model(ids)
        num_targets += sum(label != -100 for label in labels[1:])
        teacher = torch.softmax(output.depth_logits[0][0], dim=-1)
        for t in range(len(labels)):
            product, missed = 1.0, 0.0
            for k in (2, 3):
                if t + k >= len(labels) or labels[t + k] == -100:
                    product = 0.0  # an invalid depth ends the draft
                    continue
                q = torch.softmax(output.depth_logits[k - 1][0, t], dim=-1)
                p = teacher[t + k - 1]
                accepted = torch.minimum(p, q).sum()
                sums["ce"][k - 2] += -q[labels[t + k]].log()
                sums["kl"][k - 2] += (p * (p / q).log()).sum()
                sums["tv"][k - 2] += 1 - accepted
                sums["accepted"][k - 2] += accepted
                states = output.hidden_states
                sums["latent"][k - 2] += functional.smooth_l1_loss(states[k - 1][0, t], states[0][0, t + k - 1])
                product = product * accepted
                missed += 1 - product
            e2e += missed
    return sums, e2e, num_targets


@torch.no_grad()
def test_the_whole_loss_by_hand(make_trainer, make_model, demonstrations):
    sums, e2e, n = terms_by_hand(make_model().double().eval(), demonstrations)
    # harmonic: 1/2 and 1/3; the end-to-end loss has their mean, 5/12
    composed = [sums["ce"][i] + 0.5 * sums["kl"][i] + 0.25 * sums["tv"][i] + 2.0 * sums["latent"][i] for i in range(2)]
    extra = 0.4 * (composed[0] / 2 + composed[1] / 3 + 0.75 * 5 / 12 * e2e) / n
    with torch.enable_grad():
        plain = make_trainer(make_model(depth=1), **ONE_BATCH)
        plain.train()
        trainer = make_trainer(make_model(), mtp_objective=FULL, **ONE_BATCH)
        trainer.train()
    assert logged(trainer, "loss")[1] == pytest.approx(logged(plain, "loss")[1] + float(extra), rel=1e-5)
    assert logged(trainer, "mtp/coef") == {1: 0.4}
    # All prompts have at least 4 tokens: depths 2 and 3 have as many targets as depth 1.
    for k in (2, 3):
        assert logged(trainer, f"mtp/loss_depth_{k}")[1] == pytest.approx(float(sums["ce"][k - 2]) / n, rel=1e-5)
        acceptance = float(sums["accepted"][k - 2]) / n
        assert logged(trainer, f"mtp/acceptance_depth_{k}")[1] == pytest.approx(acceptance, rel=1e-5)
        assert 0 < acceptance < 1


@pytest.mark.parametrize("term", ["ce", "kl", "tv", "e2e_tv", "latent"])
def test_acceptance_is_logged_in_training_where_it_is_computed_anyway(make_trainer, make_model, term):
    terms = {"ce": 0.0, term: 1.0}
    trainer = make_trainer(make_model(), mtp_objective={"terms": terms}, max_steps=1)
    trainer.train()
    assert bool(logged(trainer, "mtp/acceptance_depth_3")) == (term in ("kl", "tv", "e2e_tv"))


@pytest.mark.parametrize("head", ["sequential", "eagle"])
def test_gradient_checkpointing_changes_no_term(make_trainer, make_model, head):
    trainers = [
        make_trainer(make_model(head=head), mtp_objective=FULL, max_steps=3, activation_checkpointing=enabled)
        for enabled in (False, True)
    ]
    for trainer in trainers:
        trainer.train()
    plain, checkpointed = trainers
    assert checkpointed.mtp_forward.model.base_model.layers[0].gradient_checkpointing
    for name in ("loss", "grad_norm", "mtp/loss_depth_2", "mtp/loss_depth_3", "mtp/acceptance_depth_3"):
        assert logged(checkpointed, name) == pytest.approx(logged(plain, name), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Which heads run in which step
# ---------------------------------------------------------------------------------------------------------------------


def test_a_window_trains_its_depths_and_evaluation_measures_all(run, make_model, make_trainer, demonstrations):
    evaluated = demonstrations.select(range(8))
    trainer, runs = run({"window": {"first": 3, "last": 3}}, depth=4, max_steps=2, eval_dataset=evaluated)
    assert runs == {(0, 3): 1, (1, 3): 1}
    assert set(logged(trainer, "mtp/loss_depth_3")) == {1, 2}
    assert not logged(trainer, "mtp/loss_depth_2")
    assert not logged(trainer, "mtp/loss_depth_4")
    model, untouched = trainer.mtp_forward.model, make_model(depth=4, head="parallel")
    moved = [
        not torch.equal(dict(model.heads.named_parameters())[name], parameter)
        for name, parameter in untouched.heads.named_parameters()
    ]
    assert any(moved)
    assert not all(moved)
    metrics = trainer.evaluate()
    expected = {f"eval_mtp/{name}_depth_{k}" for name in ("loss", "top1", "acceptance") for k in (2, 3, 4)}
    assert expected <= trainer.state.log_history[-1].keys()
    # TRL's loss alone, of the same trunk
    plain = make_model(depth=1)
    plain.trunk.load_state_dict(model.trunk.state_dict())
    assert metrics["eval_loss"] == make_trainer(plain, eval_dataset=evaluated).evaluate()["eval_loss"]


def test_a_curriculum_runs_heads_only_when_planned(run):
    # Two depths make three stages of two steps each; every step has two micro-batches.
    options = {"max_steps": 6, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    forward, runs = run({"window": {"curriculum": "forward"}}, **options)
    assert runs == {(2, 2): 2, (3, 2): 2, (4, 2): 2, (5, 2): 2, (4, 3): 2, (5, 3): 2}
    assert set(logged(forward, "mtp/loss_depth_2")) == {3, 4, 5, 6}
    assert set(logged(forward, "mtp/loss_depth_3")) == {5, 6}
    _, runs = run({"window": {"curriculum": "reverse"}}, **options)
    assert runs == {(0, 2): 2, (1, 2): 2, (2, 2): 2, (3, 2): 2, (0, 3): 2, (1, 3): 2}


def test_every_other_step_has_no_heads(run):
    trainer, runs = run({"frequency": {"every_steps": 2}}, max_steps=4)
    assert runs == {(0, 2): 1, (0, 3): 1, (2, 2): 1, (2, 3): 1}
    assert set(logged(trainer, "mtp/loss_depth_2")) == {1, 3}


def test_one_random_depth_is_the_same_in_all_micro_batches_of_a_step(run):
    options = {"depth": 5, "max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    _, runs = run({"frequency": {"one_random_depth": True}}, **options)
    assert sorted(step for step, _ in runs) == [0, 1, 2, 3]  # one depth each
    assert set(runs.values()) == {2}
    assert len({depth for _, depth in runs}) > 1
    _, again = run({"frequency": {"one_random_depth": True}}, **options)
    assert again == runs
    _, other = run({"frequency": {"one_random_depth": True}}, seed=7, **options)
    assert other != runs


@pytest.mark.parametrize(("frequency", "scale"), [({"position_fraction": 0.5}, 2), ({"position_stride": 4}, 4)])
def test_thinned_positions_count_for_those_left_out(make_trainer, make_model, frequency, scale):
    trainer = make_trainer(make_model(), mtp_objective={"frequency": frequency, "coef": {"start": 0.3}}, **ONE_BATCH)
    seen = []
    log = trainer._add_depths
    trainer._add_depths = lambda later: (seen.append(later), log(later))
    trainer.train()
    (later,) = seen
    whole = make_trainer(make_model(), mtp_objective={"coef": {"start": 0.3}}, **ONE_BATCH)
    all_targets = []
    whole._add_depths = lambda later: all_targets.append(later.sums.counts[0].item())
    whole.train()
    kept = later.sums.counts[0].item()
    # Binomial for the fraction: five standard deviations are a false alarm in 10^6. With a stride each row keeps a
    # fourth of its positions, give or take one.
    n = all_targets[0]
    margin = 32 if "position_stride" in frequency else 5 * (n * 0.25) ** 0.5
    assert abs(kept - n / scale) < margin
    assert 0 < kept < n
    # The mean over two depths, 1/2 each, times what makes up for the positions left out.
    torch.testing.assert_close(later.total.detach(), scale * later.sums.ce.sum() / 2, rtol=1e-5, atol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Lambda
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows_of_eight():
    """32 rows of 8 tokens: 64 tokens in a batch of 8, whatever the order."""
    rows = [[2 + (i * j) % 10 for j in range(7)] + [1] for i in range(32)]
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


def test_lambda_by_tokens_and_its_count_survive_a_resume(
    make_trainer, make_model, make_config, rows_of_eight, tmp_path
):
    schedule = {"kind": "step", "start": 0.5, "end": 0.1, "begin": 128, "unit": "tokens"}
    options = {"mtp_objective": {"coef": schedule}, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(
        make_model(), make_config(output_dir=tmp_path / "whole", **options), train_dataset=rows_of_eight
    )
    whole.train()
    # Before the steps 0, 64, 128 and 192 tokens were seen.
    assert logged(whole, "mtp/coef") == {1: 0.5, 2: 0.5, 3: 0.1, 4: 0.1}
    assert whole.state.num_input_tokens_seen == 256
    resumed = make_trainer(
        make_model(seed=1), make_config(output_dir=tmp_path / "resumed", **options), train_dataset=rows_of_eight
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert logged(resumed, "mtp/coef") == logged(whole, "mtp/coef")
    assert logged(resumed, "loss") == logged(whole, "loss")
    assert resumed.state.num_input_tokens_seen == 256


def test_tokens_are_counted_without_padding_and_once_a_step(make_trainer, make_model, demonstrations):
    # One step of eight micro-batches: the count moves in it, lambda does not.
    schedule = {"kind": "step", "start": 0.5, "end": 0.1, "begin": 1, "unit": "tokens"}
    options = {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 8}
    trainer = make_trainer(make_model(), mtp_objective={"coef": schedule}, **options)
    trainer.train()
    assert logged(trainer, "mtp/coef") == pytest.approx({1: 0.5, 2: 0.1})
    assert trainer.state.num_input_tokens_seen == 2 * sum(len(row) for row in demonstrations["input_ids"])


def test_lambda_by_the_fraction_of_training(run, demonstrations):
    schedule = {"kind": "linear", "start": 0.8, "end": 0.0, "duration": 1.0}
    trainer, runs = run({"coef": schedule}, max_steps=4)
    assert logged(trainer, "mtp/coef") == pytest.approx({1: 0.8, 2: 0.6, 3: 0.4, 4: 0.2})
    assert set(runs.values()) == {1}


def test_evaluation_before_training_asks_no_schedule(make_trainer, make_model, demonstrations):
    # How long training will be is not known yet.
    objective = {
        "coef": {"kind": "linear", "start": 0.8, "end": 0.0, "duration": 1.0},
        "window": {"curriculum": "forward"},
    }
    trainer = make_trainer(make_model(), mtp_objective=objective, eval_dataset=demonstrations)
    trainer.evaluate()
    assert "eval_mtp/loss_depth_3" in trainer.state.log_history[-1]


def test_at_lambda_zero_heads_are_measured_without_a_graph(make_trainer, make_model):
    trainer = make_trainer(make_model(head="parallel"), mtp_objective={"coef": {"start": 0.0}}, max_steps=2)
    model, with_graph, gradients = trainer.mtp_forward.model, [], []
    forward, clip = model.heads.forward_depth, trainer._clip_grad_norm

    def spy(*args, **kwargs):
        with_graph.append(torch.is_grad_enabled())
        return forward(*args, **kwargs)

    def look(module):
        gradients.extend(parameter.grad for parameter in model.heads.parameters())
        return clip(module)

    model.heads.forward_depth, trainer._clip_grad_norm = spy, look
    trainer.train()
    assert with_graph == [False] * 4  # two depths in two steps
    assert gradients
    assert all(gradient is None for gradient in gradients)
    assert set(logged(trainer, "mtp/loss_depth_3")) == {1, 2}
    assert logged(trainer, "mtp/coef") == {1: 0.0, 2: 0.0}


# ---------------------------------------------------------------------------------------------------------------------
# The border
# ---------------------------------------------------------------------------------------------------------------------


def test_a_window_beyond_the_model_is_refused_at_construction(make_trainer, make_model):
    with pytest.raises(ValueError, match=r"window 2 \.\. 5 reaches beyond the model's 3 depths"):
        make_trainer(make_model(depth=3), mtp_objective={"window": {"last": 5}})


def test_a_frozen_trunk_stands_still_in_steps_without_depths(make_trainer, make_model):
    model = make_model(depth=3)
    model.trunk.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    make_trainer(model, mtp_objective={"frequency": {"every_steps": 2}}, max_steps=3).train()
    after = model.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"heads"}
