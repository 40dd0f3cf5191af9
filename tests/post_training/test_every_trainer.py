"""What holds for every trainer: passes of trunk and heads, isolation of the trunk, invariance to accumulation."""

import copy

import pytest
import torch
from transformers import TrainerCallback

OF_TRL = ("SFT", "DPO", "KTO", "GRPO", "RLOO")
KINDS = (*OF_TRL, "PPO")
SAMPLING = ("GRPO", "RLOO", "PPO")
SAMPLE_LIKE_TRL = {"mtp_draft": "trl", "beta": 0.0}
LOUD = {"terms": {"ce": 1.0, "kl": 1.0}, "coef": {"start": 1000.0}}


def watch(trainer):
    """The passes of the trunk and the runs of heads, each with or without gradients."""
    model, trunk, heads = trainer.mtp_forward.model, [], []
    model.base_model.layers[0].register_forward_hook(lambda *_: trunk.append(torch.is_grad_enabled()))
    forward = model.heads.forward_depth

    def counted(depth, *args, **kwargs):
        heads.append((depth, torch.is_grad_enabled()))
        return forward(depth, *args, **kwargs)

    model.heads.forward_depth = counted
    return trunk, heads


@pytest.mark.parametrize("kind", KINDS)
def test_one_trunk_pass_with_gradients_a_micro_batch_and_heads_in_no_other(make_any, make_model, kind):
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 3}
    if kind in SAMPLING:
        options |= {"mtp_draft": "trl", "beta": 0.1, "num_iterations": 2}  # drafts are runs of heads, too
    trainer = make_any(kind, make_model(head="parallel"), **options)
    trunk, heads = watch(trainer)
    trainer.train()
    assert trunk.count(True) == 6
    assert heads == [(2, True), (3, True)] * 6


@pytest.mark.parametrize("kind", KINDS)
def test_heads_run_inside_the_models_forward_alone(make_any, make_model, kind):
    """FSDP2 gathers a root's own weights, among them those of heads, around its forward: outside they are in shards."""
    options = {"mtp_draft": "trl", "beta": 0.1} if kind in SAMPLING else {}  # as sharded training samples
    trainer = make_any(kind, make_model(head="parallel"), max_steps=2, mtp_detach=True, **options)
    model, depth, runs = trainer.mtp_forward.model, [0], []
    model.register_forward_pre_hook(lambda *_: depth.append(depth.pop() + 1))
    model.register_forward_hook(lambda *_: depth.append(depth.pop() - 1), always_call=True)
    heads = {f"heads.{name}": part for name, part in model.heads.named_modules() if name}
    heads |= {f"world_heads.{name}": part for name, part in model.world_heads.named_modules() if name}
    for name, part in heads.items():
        part.register_forward_hook(lambda *_, name=name: runs.append((name, depth[0])))
    forward = model.heads.forward_depth
    model.heads.forward_depth = lambda *args, **kwargs: runs.append(("depth", depth[0])) or forward(*args, **kwargs)
    trainer.train()
    trainer.evaluate(trainer.train_dataset)
    ran = {name.split(".")[0] for name, _ in runs}
    assert ran == ({"depth", "heads", "world_heads"} if kind == "PPO" else {"depth", "heads"})
    assert [run for run in runs if run[1] != 1] == []


def differing(ours, theirs):
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


class AtStep(TrainerCallback):
    """Calls a function with the trainer's control after a step."""

    def __init__(self, step, call):
        self.step, self.call = step, call

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.call(control)


@pytest.mark.parametrize("kind", OF_TRL)
def test_a_detached_trunk_is_trls_to_the_bit_and_a_joint_one_is_not(make_any, make_model, make_trunk, kind):
    options = {"per_device_train_batch_size": 4, "max_steps": 20, "learning_rate": 1e-3, "max_grad_norm": 0.1}
    plain = make_trunk()
    start = {name: weight.clone() for name, weight in plain.state_dict().items()}
    samples = kind in SAMPLING
    third = {}
    keep = AtStep(3, lambda control: third.update(copy.deepcopy(plain.state_dict())))
    make_any(kind, plain, callbacks=[keep], **options, **({"beta": 0.0} if samples else {})).train()
    assert any(not torch.equal(weight, start[name]) for name, weight in plain.state_dict().items())
    options |= SAMPLE_LIKE_TRL if samples else {}
    detached = make_model()
    heads = [weight.detach().clone() for weight in detached.heads.parameters()]
    make_any(kind, detached, mtp_detach=True, mtp_objective=LOUD, **options).train()
    assert differing(detached.trunk.state_dict(), plain.state_dict()) == []
    assert not any(map(torch.equal, heads, detached.heads.parameters()))
    joint = make_model()
    stop = AtStep(3, lambda control: setattr(control, "should_training_stop", True))
    make_any(kind, joint, callbacks=[stop], mtp_detach=False, mtp_objective=LOUD, **options).train()
    assert differing(joint.trunk.state_dict(), third)


@pytest.mark.parametrize("kind", KINDS)
def test_accumulating_8_times_1_equals_1_times_8(make_any, make_model, kind):
    # Double weights, and plain SGD: Adam's first step would make a full step of a last-bit difference.
    models = []
    loss = {"loss_type": "apo_zero_unpaired"} if kind == "KTO" else {}  # its other loss needs two rows at a time
    for batch, accumulation in ((8, 1), (1, 8)):
        models.append(make_model().double())
        options = {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
            "max_steps": 2,
            **loss,
        }
        make_any(kind, models[-1], optim="sgd", learning_rate=0.1, **options).train()
    whole, accumulated = models
    moved = (whole.heads.layers[0].projection.weight - make_model().heads.layers[0].projection.weight).abs().max()
    assert moved > 1e-4  # against the tolerance below
    for ours, theirs in zip(accumulated.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_measures_and_learns_nothing(make_any, make_model, kind):
    trainer = make_any(kind, make_model(), per_device_eval_batch_size=4)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    metrics = trainer.evaluate(trainer.train_dataset)
    assert metrics["eval_mtp/loss_depth_3"] > 0
    assert 0 < metrics["eval_mtp/acceptance_depth_2"] < 1
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_making_a_trainer_moves_no_weight_of_the_heads(make_any, make_model, kind):
    model = make_model()
    with torch.no_grad():
        model.heads.layers[0].projection.weight.zero_()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    make_any(kind, model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
