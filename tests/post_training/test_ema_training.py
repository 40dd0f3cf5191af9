"""A moving average of the trunk as teacher: moved once a step, used as the target, saved and found again."""

import pytest
import torch
from transformers import TrainerCallback

from worldmtp.post_training import MTPSFTTrainer

OBJECTIVE = {
    "terms": {"ce": 1.0, "kl": 0.5, "latent": 1.0},
    "latent_target": "ema",
    "ema_decay": 0.5,
    "coef": {"start": 1.0},
}


class Snapshots(TrainerCallback):
    """The trunk's weights before training and after each step."""

    def __init__(self, backbone):
        self.backbone = backbone
        self.weights = [self._copy()]

    def _copy(self):
        return {name: value.detach().clone() for name, value in self.backbone.named_parameters()}

    def on_step_end(self, args, state, control, **kwargs):
        self.weights.append(self._copy())


def losses_of(trainer):
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_average_moves_once_a_step(make_trainer, make_model, accumulation):
    model = make_model()
    snapshots = Snapshots(model.base_model)
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": accumulation, "max_steps": 2}
    trainer = make_trainer(model, mtp_objective=OBJECTIVE, callbacks=[snapshots], **options)
    trainer.train()
    first, second, third = snapshots.weights
    average = trainer.mtp_ema.state_dict()
    moved = 0
    for name, weight in third.items():
        # 1/2 (1/2 w0 + 1/2 w1) + 1/2 w2
        expected = 0.25 * first[name] + 0.25 * second[name] + 0.5 * weight
        torch.testing.assert_close(average[name], expected, rtol=0, atol=1e-7)
        moved += not torch.equal(average[name], weight)
    assert moved == len(third)


def test_the_average_is_the_target(make_trainer, make_model):
    # It starts as a copy: the first loss is that of the trunk as teacher, the second no longer.
    options = {"max_steps": 2, "per_device_train_batch_size": 32}
    averaged = make_trainer(make_model(), mtp_objective=OBJECTIVE, **options)
    averaged.train()
    direct = {name: value for name, value in OBJECTIVE.items() if name not in ("latent_target", "ema_decay")}
    trunk = make_trainer(make_model(), mtp_objective=direct, **options)
    trunk.train()
    assert losses_of(averaged)[0] == pytest.approx(losses_of(trunk)[0], rel=1e-6)
    assert losses_of(averaged)[1] != pytest.approx(losses_of(trunk)[1], rel=1e-4)


def test_the_average_is_not_run_where_no_head_is(make_trainer, make_model, demonstrations):
    objective = OBJECTIVE | {"frequency": {"every_steps": 3}}
    trainer = make_trainer(make_model(), mtp_objective=objective, max_steps=4, eval_dataset=demonstrations)
    calls, hidden = [], trainer.mtp_ema.hidden

    def spy(**inputs):
        calls.append(trainer.state.global_step)
        return hidden(**inputs)

    trainer.mtp_ema.hidden = spy
    trainer.train()
    assert calls == [0, 3]
    trainer.evaluate()
    assert calls == [0, 3]


def test_acceptance_in_evaluation_is_by_the_trunk(make_trainer, make_model, demonstrations):
    # After steps with a slow average, trunk and average differ; drafts are verified by the trunk.
    model = make_model()
    options = {"max_steps": 3, "eval_dataset": demonstrations}
    trainer = make_trainer(model, mtp_objective=OBJECTIVE | {"ema_decay": 0.99}, **options)
    trainer.train()
    trainer.evaluate()
    of_average = trainer.state.log_history[-1]
    trainer.release_model()
    trainer = make_trainer(model, eval_dataset=demonstrations)
    trainer.evaluate()
    of_trunk = trainer.state.log_history[-1]
    for k in (2, 3):
        assert of_average[f"eval_mtp/acceptance_depth_{k}"] == of_trunk[f"eval_mtp/acceptance_depth_{k}"]


def test_a_killed_run_goes_on_bit_for_bit(make_trainer, make_model, make_config, tmp_path):
    # With everything drawn that can be: the depth and the positions.
    drawn = {"one_random_depth": True, "position_fraction": 0.7}
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    options["mtp_objective"] = OBJECTIVE | {"frequency": drawn}
    whole = make_model()
    uninterrupted = make_trainer(whole, make_config(output_dir=tmp_path / "whole", **options))
    uninterrupted.train()
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    assert (checkpoint / "ema_trunk.pt").is_file()
    resumed = make_model(seed=1)
    trainer = make_trainer(resumed, make_config(output_dir=tmp_path / "resumed", **options))
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert losses_of(trainer) == losses_of(uninterrupted)
    expected, average = uninterrupted.mtp_ema.state_dict(), trainer.mtp_ema.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], average[name])] == []
    weights = dict(whole.named_parameters())
    assert [n for n, parameter in resumed.named_parameters() if not torch.equal(parameter, weights[n])] == []


def test_a_checkpoint_without_an_average_is_refused(make_trainer, make_model, tmp_path):
    make_trainer(make_model(), max_steps=1, save_strategy="steps", save_steps=1).train()
    trainer = make_trainer(make_model(), mtp_objective=OBJECTIVE, max_steps=2)
    with pytest.raises(FileNotFoundError, match=r"ema_trunk\.pt is missing: .* kept no average of its trunk"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))


class Sharded(MTPSFTTrainer):
    """Believes that its weights lie in pieces."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled = True


def test_sharded_training_is_refused(make_model, make_config, tokenizer, demonstrations):
    options = {"train_dataset": demonstrations, "processing_class": tokenizer}
    with pytest.raises(
        ValueError, match=r"latent_target='ema' averages whole parameters, .* use latent_target='trunk'"
    ):
        Sharded(make_model(), make_config(mtp_objective=OBJECTIVE), **options)
    Sharded(make_model(), make_config(), **options)
