"""The cosine between the gradients of the heads' loss and of the trainer's own, against those worked out apart."""

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from worldmtp.post_training.cosine import gradient_cosine

TAG = "mtp/gradient_cosine"


def logged(trainer):
    return [record[TAG] for record in trainer.state.log_history if TAG in record]


def test_it_is_the_cosine_by_all_weights_together():
    """Gradients (3, 4 | 0) and (4, 3 | 12): 24 / (5 * 13)."""
    a, b = torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)
    first = (torch.tensor([3.0, 4.0]) * a).sum()
    second = (torch.tensor([4.0, 3.0]) * a).sum() + (12.0 * b).sum()
    assert float(gradient_cosine(first, second, [a, b])) == pytest.approx(24 / 65)
    assert float(gradient_cosine(first, -first, [a, b])) == pytest.approx(-1)
    (first + second).backward()  # the graphs are still there
    assert a.grad.tolist() == [7.0, 7.0]


def test_without_a_gradient_it_is_nan():
    a = torch.zeros(1, requires_grad=True)
    loss = (2 * a).sum()
    for other, weights in ((torch.zeros(()), [a]), (loss, []), ((0 * a).sum(), [a])):
        assert math.isnan(float(gradient_cosine(loss, other, weights)))


def test_a_joint_step_logs_what_two_backward_passes_give(make_trainer, make_model, demonstrations):
    model, apart = make_model(), make_model()
    trainer = make_trainer(model, train_dataset=demonstrations.select(range(8)), max_steps=1)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    trainer.train()

    weights = list(apart.base_model.layers[-1].parameters())
    logits = apart(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).depth_logits
    labels = batch["labels"]

    def gradient(depths):
        losses = []
        for depth in depths:
            ahead = logits[depth - 1][:, :-depth]
            losses.append(cross_entropy(ahead.flatten(0, 1), labels[:, depth:].flatten(), reduction="sum"))
        parts = torch.autograd.grad(sum(losses), weights, retain_graph=True)
        return torch.cat([part.flatten() for part in parts])

    expected = float(cosine_similarity(gradient([1]), gradient([2, 3]), dim=0))
    assert abs(expected) > 1e-3
    assert logged(trainer) == [pytest.approx(expected, abs=1e-5)]


@pytest.mark.parametrize("kind", ["SFT", "DPO", "KTO", "GRPO", "RLOO", "PPO"])
def test_it_is_logged_at_its_steps_where_training_is_joint(make_any, make_model, kind):
    options = {"per_device_train_batch_size": 4, "max_steps": 4, "mtp_cosine_steps": 2, "mtp_detach": False}
    trainer = make_any(kind, make_model(), **options)
    trainer.train()
    steps = [record["step"] for record in trainer.state.log_history if TAG in record]
    assert set(steps) <= {1, 3}
    assert steps  # a step of RLOO, whose rewards do not differ, has no gradient of its own
    assert all(-1 <= value <= 1 for value in logged(trainer))


@pytest.mark.parametrize(
    ("model_options", "options"),
    [({}, {"mtp_detach": True}), ({"detach_trunk": True}, {}), ({}, {"mtp_cosine_steps": 0})],
)
def test_detached_or_switched_off_it_is_not_measured(make_trainer, make_model, model_options, options):
    trainer = make_trainer(make_model(**model_options), max_steps=1, **options)
    trainer.train()
    assert logged(trainer) == []


@pytest.mark.parametrize("checkpointing", [False, True])
def test_looking_changes_nothing(make_trainer, make_model, checkpointing):
    looked, unseen = make_model(), make_model()
    options = {"max_steps": 3, "activation_checkpointing": checkpointing}
    make_trainer(looked, mtp_cosine_steps=1, **options).train()
    make_trainer(unseen, mtp_cosine_steps=0, **options).train()
    assert all(map(torch.equal, looked.parameters(), unseen.parameters()))


def test_a_number_of_steps_is_asked_for(make_config):
    with pytest.raises(ValueError, match="mtp_cosine_steps=-1 must be a number of steps, or 0 for never"):
        make_config(mtp_cosine_steps=-1)
