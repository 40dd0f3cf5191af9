"""MTPSFTTrainer end to end on a CPU: its loss, invariances, isolation, resume, errors, metrics."""

import math

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

DEFAULT = None
FULL = {"terms": {"ce": 1.0, "kl": 1.0, "tv": 1.0, "e2e_tv": 1.0, "latent": 1.0}, "coef": {"start": 0.5}}


def losses_of(trainer):
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def assert_same_weights(ours, theirs):
    expected = dict(theirs.named_parameters())
    assert expected
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_the_loss_is_trls_plus_the_coefficient_times_the_mean_of_the_depths(make_trainer, make_model):
    # 32 examples in one step: one log record holds the loss at the initial weights. Every prompt has at least 4 tokens,
    # so depths 1, 2 and 3 have the same number of targets and the logged means are over N, as in the loss.
    options = {"per_device_train_batch_size": 32, "max_steps": 1}
    plain = make_trainer(make_model(depth=1), **options)
    plain.train()
    trainer = make_trainer(make_model(depth=3), mtp_objective={"coef": {"start": 0.5}}, **options)
    trainer.train()
    record = trainer.state.log_history[0]
    aux = (record["mtp/loss_depth_2"] + record["mtp/loss_depth_3"]) / 2
    assert record["loss"] == pytest.approx(losses_of(plain)[0] + 0.5 * aux, rel=1e-5)
    assert 0 <= record["mtp/top1_depth_2"] <= 1
    assert {"entropy", "mean_token_accuracy", "num_tokens"} <= set(record)


def test_lambda_is_deepseeks_unless_the_objective_says_otherwise(make_trainer, make_model):
    assert make_trainer(make_model()).mtp_forward.objective.coef.start == 0.3
    half = make_trainer(make_model(), mtp_objective={"coef": {"start": 0.5}})
    assert half.mtp_forward.objective.coef.start == 0.5


def test_with_coefficient_zero_the_heads_are_measured_and_not_trained(make_trainer, make_model):
    model, untouched = make_model(), make_model()
    trainer = make_trainer(model, mtp_objective={"coef": {"start": 0.0}}, max_steps=2)
    trainer.train()
    assert_same_weights(model.heads, untouched.heads)
    assert trainer.state.log_history[0]["mtp/loss_depth_2"] > 0


def test_one_trunk_forward_per_micro_batch_whatever_the_accumulation(make_trainer, make_model):
    model = make_model(depth=4)
    calls = []
    model.base_model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 3}
    make_trainer(model, **options).train()
    assert len(calls) == 6


@pytest.mark.parametrize("objective", [DEFAULT, FULL])
def test_accumulating_8_times_1_equals_1_times_8(make_trainer, make_model, objective):
    # Double weights, so that what differs is the order of sums and what TRL and Qwen3 compute in float32 all the same;
    # plain SGD, because Adam's first step is the gradient's sign and makes a full step of a last-bit difference.
    options = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.1, "mtp_objective": objective}
    models = []
    for batch, accumulation in ((8, 1), (1, 8)):
        model = make_model().double()
        models.append(model)
        trainer = make_trainer(
            model, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, **options
        )
        trainer.train()
    whole, accumulated = models
    initial = make_model().double()
    moved = (whole.heads.layers[0].projection.weight - initial.heads.layers[0].projection.weight).abs().max()
    assert moved > 5e-4  # against the tolerance below
    for ours, theirs in zip(accumulated.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("layout", "objective"), [("padding_free", DEFAULT), ("packing", DEFAULT), ("padding_free", FULL)]
)
def test_packed_training_equals_padded_training(make_trainer, make_model, layout, objective):
    options = {"max_steps": 1, "per_device_train_batch_size": 32, "optim": "sgd", "learning_rate": 0.1}
    options |= {"mtp_objective": objective}
    padded, packed = make_model().double(), make_model().double()
    reference = make_trainer(padded, **options)
    reference.train()
    if layout == "packing":
        options |= {"packing": True, "max_length": 32, "dataset_kwargs": None}
    else:
        options |= {"padding_free": True, "max_length": None}
    trainer = make_trainer(packed, **options)
    trainer.train()
    assert trainer.padding_free
    assert losses_of(trainer)[0] == pytest.approx(losses_of(reference)[0], abs=1e-5)
    for ours, theirs in zip(packed.parameters(), padded.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_depth_1_on_full_text_is_plain_sft_bit_for_bit(
    make_trainer, make_config, make_model, make_trunk, tokenizer, demonstrations
):
    # Labels on the first token too: it is never a target, and must not be counted as one.
    full = Dataset.from_dict({"input_ids": demonstrations["input_ids"], "labels": demonstrations["input_ids"]})
    trunk = make_trunk()
    config = make_config(SFTConfig, bf16=False, activation_checkpointing=False)
    SFTTrainer(trunk, config, train_dataset=full, processing_class=tokenizer).train()
    model = make_model(depth=1)
    make_trainer(model, train_dataset=full).train()
    assert_same_weights(model.trunk, trunk)


def test_gradient_checkpointing_changes_nothing(make_trainer, make_model):
    plain, checkpointed = make_model(), make_model()
    make_trainer(plain).train()
    make_trainer(checkpointed, activation_checkpointing=True).train()
    assert checkpointed.base_model.layers[0].gradient_checkpointing
    assert checkpointed.heads.layers[0].block.gradient_checkpointing
    for ours, theirs in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_evaluation_logs_the_depths_beside_trls_loss(make_trainer, make_model, demonstrations):
    trainer = make_trainer(make_model(), eval_dataset=demonstrations, mtp_objective={"coef": {"start": 0.5}})
    metrics = trainer.evaluate()
    plain = make_trainer(make_model(depth=1), eval_dataset=demonstrations)
    assert metrics["eval_loss"] == plain.evaluate()["eval_loss"]
    record = trainer.state.log_history[-1]
    # random weights: near the uniform guess, log of 14 tokens
    assert record["eval_mtp/loss_depth_2"] == pytest.approx(math.log(14), abs=0.3)
    assert "eval_mtp/top1_depth_3" in record
    assert trainer._metrics["train"] == {}


def test_training_learns_and_the_released_model_is_plain_again(make_trainer, make_model):
    model = make_model()
    trainer = make_trainer(model, max_steps=30, per_device_train_batch_size=32)
    trainer.train()
    first, last = trainer.state.log_history[0], trainer.state.log_history[29]
    for name in ("mtp/loss_depth_2", "mtp/loss_depth_3"):
        assert last[name] < 0.7 * first[name]
    assert trainer.release_model() is model
    assert "forward" not in vars(model)


# torch's own RMSNorm, in the heads, says that float32 weights keep it from its fused kernel under autocast.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
def test_under_bf16_autocast_the_model_is_trained_and_released_too(make_trainer, make_model):
    model = make_model()
    trainer = make_trainer(model, bf16=True, max_steps=2)
    trainer.train()
    assert trainer.state.log_history[0]["mtp/loss_depth_3"] == pytest.approx(math.log(14), abs=0.3)
    assert "forward" not in vars(trainer.release_model())
    assert model(torch.tensor([[2, 3, 4]])).logits.dtype == torch.float32


def test_resuming_from_a_checkpoint_is_bit_exact(make_trainer, make_model, make_config, tmp_path):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = make_model()
    uninterrupted = make_trainer(whole, make_config(output_dir=tmp_path / "whole", **options))
    uninterrupted.train()
    # another seed: every weight must come from the checkpoint
    resumed = make_model(seed=1)
    trainer = make_trainer(resumed, make_config(output_dir=tmp_path / "resumed", **options))
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert trainer.state.global_step == 6
    assert len(losses_of(trainer)) == 6
    assert losses_of(trainer) == losses_of(uninterrupted)
    assert_same_weights(resumed, whole)


class _BreakHeads(TrainerCallback):
    """Puts a NaN into the heads after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                model.heads.layers[-1].projection.weight[0, 0] = float("nan")


def test_a_nan_stops_with_step_term_and_the_last_good_checkpoint(make_trainer, make_model, tmp_path):
    trainer = make_trainer(
        make_model(), callbacks=[_BreakHeads(step=3)], max_steps=6, save_strategy="steps", save_steps=2
    )
    last_good = tmp_path / "run" / "checkpoint-2"
    expected = f"step 4: term mtp/loss=nan, mtp/loss_depth_3=nan. The last good checkpoint is {last_good};"
    with pytest.raises(FloatingPointError, match=expected):
        trainer.train()


def test_weights_that_are_not_finite_are_never_saved(make_trainer, make_model, tmp_path):
    trainer = make_trainer(
        make_model(), callbacks=[_BreakHeads(step=2)], max_steps=6, save_strategy="steps", save_steps=2
    )
    with pytest.raises(FloatingPointError, match=r"after step 2: term heads\.layers\.1\.projection\.weight"):
        trainer.train()
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_trainer_reports_to_no_server(make_trainer, make_model, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("telemetry")

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", refuse)
    make_trainer(make_model())


def test_callbacks_are_passed_through(make_trainer, make_model):
    class Count(TrainerCallback):
        steps = 0

        def on_step_end(self, args, state, control, **kwargs):
            self.steps += 1

    callback = Count()
    make_trainer(make_model(), callbacks=[callback], max_steps=2).train()
    assert callback.steps == 2


def test_an_empty_dataset_is_refused(make_trainer, make_model, demonstrations):
    empty = demonstrations.select([])
    with pytest.raises(ValueError, match="train_dataset is empty: got 0 examples, expected at least 1"):
        make_trainer(make_model(), train_dataset=empty)
    with pytest.raises(ValueError, match="eval_dataset is empty"):
        make_trainer(make_model(), eval_dataset=empty)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(make_trainer, make_model, tokenizer):
    tokenizer.add_tokens(["x", "y"])
    with pytest.raises(ValueError, match="the tokenizer has 16 tokens and the model's vocabulary 14; build the trunk"):
        make_trainer(make_model())
