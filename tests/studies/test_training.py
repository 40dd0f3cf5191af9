"""The studies' training loop: its learning rates by hand, what moves and what stays, when it stops."""

import math

import pytest
import torch
from torch.nn import functional

from worldmtp.objective import MTPObjective
from worldmtp.studies.training import Batch, TrainingConfig, learning_rate_at, train

DETACHED = {"detach_trunk": True, "detach_embedding": True, "detach_lm_head": True}


def batch_of(step: int) -> Batch:
    ids = torch.randint(4, (3, 9), generator=torch.Generator().manual_seed(step))
    return Batch(ids, ids)


def copies(module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def is_as(module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(weight, before[name]) for name, weight in module.named_parameters())


def test_learning_rate_by_hand():
    config = TrainingConfig(num_steps=14, learning_rate=2.0, warmup_steps=4, final_lr_fraction=0.1)
    # Quarters up to 2, then 2 (0.1 + 0.9 (1 + cos(pi n / 10)) / 2): n = 0, 5 and, after the last step, 10.
    assert [learning_rate_at(config, step) for step in range(5)] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert learning_rate_at(config, 9) == pytest.approx(1.1)
    assert learning_rate_at(config, 13) == pytest.approx(2 * (0.1 + 0.45 * (1 - math.cos(math.pi / 10))))
    assert learning_rate_at(config, 14) == pytest.approx(0.2)


def test_warm_up_longer_than_training():
    config = TrainingConfig(num_steps=3, learning_rate=1.0, warmup_steps=10)
    assert [learning_rate_at(config, step) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])


def test_step_n_sees_batch_n_and_losses_are_the_models(make_model):
    model, asked, seen = make_model(depth=3), [], []

    def batches(step: int) -> Batch:
        asked.append(step)
        return batch_of(step)

    ids = batch_of(0).input_ids
    with torch.no_grad():
        expected = float(model.trunk(ids, labels=ids).loss)
        logits = model(ids).depth_logits
    # Depth k at t predicts t + k: 9 - k targets a row.
    later = {
        k: float(functional.cross_entropy(logits[k - 1][:, :-k].flatten(0, 1), ids[:, k:].flatten())) for k in (2, 3)
    }
    train(model, batches, MTPObjective(), TrainingConfig(num_steps=4), seen.append)
    assert asked == [0, 1, 2, 3] == [losses.step for losses in seen]
    assert seen[0].next_token == pytest.approx(expected, rel=1e-5)
    assert seen[0].later == pytest.approx(later, rel=1e-5)
    assert not model.training


def test_only_labelled_tokens_count(make_model):
    # The last two of six tokens: depth 1 has two targets a row, from positions 3 and 4.
    model, seen = make_model(depth=1), []
    ids = batch_of(0).input_ids[:, :6]
    labels = torch.where(torch.arange(6) < 4, -100, ids)
    with torch.no_grad():
        logits = model.trunk(ids).logits
    expected = functional.cross_entropy(logits[:, 3:5].flatten(0, 1), ids[:, 4:].flatten())
    train(model, lambda step: Batch(ids, labels), MTPObjective(), TrainingConfig(num_steps=1), seen.append)
    assert seen[0].next_token == pytest.approx(float(expected), rel=1e-5)
    assert seen[0].later == {}


@pytest.mark.parametrize("tied", [False, True])
def test_a_frozen_trunk_stays_and_its_heads_move(make_model, tied):
    model = make_model(tied=tied)  # not detached: what flows to the trunk must not move it
    trunk, heads = copies(model.trunk), copies(model.heads)
    train(model, batch_of, MTPObjective(), TrainingConfig(num_steps=3, trains_trunk=False))
    assert is_as(model.trunk, trunk)
    assert not any(torch.equal(weight, heads[name]) for name, weight in model.heads.named_parameters())


def test_detached_heads_leave_the_trunk_as_next_token_training_does(make_model):
    alone, detached, joint = make_model(depth=1), make_model(**DETACHED), make_model()
    start = copies(make_model(depth=1).trunk)
    for model in (detached, joint):
        model.trunk.load_state_dict(start)
    alone.trunk.load_state_dict(start)
    for model in (alone, detached, joint):
        train(model, batch_of, MTPObjective(), TrainingConfig(num_steps=3, warmup_steps=1))
    assert is_as(detached.trunk, copies(alone.trunk))
    assert not is_as(joint.trunk, copies(alone.trunk))
    assert not any(torch.equal(weight, start[name]) for name, weight in alone.trunk.named_parameters())


def test_a_loss_that_is_not_finite_stops_before_the_step(make_model):
    model, before = make_model(), {}

    def poisoned(step: int) -> Batch:
        if step == 2:
            with torch.no_grad():
                model.trunk.get_output_embeddings().weight[0, 0] = math.nan
            before.update(copies(model.heads))
        return batch_of(step)

    with pytest.raises(FloatingPointError, match="the loss is nan; lower the learning rate"):
        train(model, poisoned, MTPObjective(), TrainingConfig(num_steps=4))
    assert is_as(model.heads, before)


def test_equal_seeds_train_alike_and_draw_nothing_global(make_model, global_rng_untouched):
    first, second = make_model(), make_model()
    objective = MTPObjective.from_dict({"frequency": {"position_fraction": 0.5}})
    with global_rng_untouched():
        for model in (first, second):
            train(model, batch_of, objective, TrainingConfig(num_steps=2, seed=3))
    assert is_as(first, copies(second))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_steps": 0}, "num_steps=0 must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be positive"),
    ],
)
def test_wrong_settings(values, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**({"num_steps": 1} | values))
