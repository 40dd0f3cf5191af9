"""Trainers on a trunk with adapters: what moves, what their checkpoints hold, and going on from one."""

import peft
import pytest
import torch

from worldmtp.model.lora import add_lora, load_lora, merge_lora


@pytest.fixture
def make_adapted(make_model):
    def make(seed=0, **options):
        model = make_model(**options)  # the same trunk whatever the seed: checkpoints do not hold it
        config = peft.LoraConfig(r=4, target_modules="all-linear")
        return add_lora(model, config, torch.Generator().manual_seed(seed))

    return make


def losses_of(trainer):
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def assert_same_weights(ours, theirs):
    expected = dict(theirs.named_parameters())
    assert [n for n, parameter in ours.named_parameters() if not torch.equal(parameter, expected[n])] == []


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_and_heads_move_and_the_trunk_does_not(make_trainer, make_adapted, checkpointing):
    model, untouched = make_adapted(), make_adapted()
    trainer = make_trainer(model, max_steps=3, activation_checkpointing=checkpointing)
    trainer.train()
    before = dict(untouched.named_parameters())
    for name, parameter in model.named_parameters():
        is_trained = "lora_" in name or name.startswith("heads.")
        assert torch.equal(parameter, before[name]) != is_trained, name
        if not is_trained:
            assert parameter.grad is None
    assert losses_of(trainer)[-1] < losses_of(trainer)[0]


def test_resuming_is_bit_exact_and_checkpoints_are_small(make_trainer, make_adapted, make_config, make_trunk, tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = make_adapted()
    uninterrupted = make_trainer(whole, make_config(output_dir=tmp_path / "whole", **options))
    uninterrupted.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert not (checkpoint / "model.safetensors").exists()
    resumed = make_adapted(seed=1)
    torch.nn.init.normal_(resumed.heads.layers[0].projection.weight)
    trainer = make_trainer(resumed, make_config(output_dir=tmp_path / "resumed", **options))
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert losses_of(trainer) == losses_of(uninterrupted)
    assert_same_weights(resumed, whole)
    loaded = load_lora(make_trunk(), tmp_path / "whole" / "checkpoint-4")
    assert_same_weights(loaded, whole)


def test_the_saved_model_has_its_tokenizer_and_merges(make_trainer, make_adapted, make_trunk, tmp_path):
    model = make_adapted()
    trainer = make_trainer(model, max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "tokenizer.json").is_file()
    merged = merge_lora(load_lora(make_trunk(), tmp_path / "saved").eval())
    tokens = torch.tensor([[4, 5, 12, 6, 13, 7]])
    released = trainer.release_model().eval()
    torch.testing.assert_close(merged(tokens).depth_logits, released(tokens).depth_logits, rtol=0, atol=1e-5)


def test_the_best_model_is_loaded_at_the_end(make_trainer, make_adapted, make_trunk, demonstrations, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    model = make_adapted()
    trainer = make_trainer(
        model,
        eval_dataset=demonstrations.select(range(8)),
        max_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # so that the best is the first, and not what is in memory
        **options,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / "checkpoint-2")
    assert_same_weights(model, load_lora(make_trunk(), tmp_path / "run" / "checkpoint-2"))


def test_a_plain_checkpoint_is_no_beginning_for_adapters(make_trainer, make_model, make_adapted, tmp_path):
    make_trainer(make_model(), max_steps=1, save_strategy="steps", save_steps=1).train()
    with pytest.raises(FileNotFoundError, match=r"not a directory of save_lora"):
        make_trainer(make_adapted(), max_steps=2).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))


def test_the_value_head_is_trained_and_saved_beside_adapters(make_any, make_adapted, make_trunk, tmp_path):
    model, untouched = make_adapted(), make_adapted()
    trainer = make_any("PPO", model, max_steps=2, num_generations=1, save_strategy="steps", save_steps=2)
    trainer.train()
    before = dict(untouched.named_parameters())
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert "world_heads.value.3.weight" in moved
    assert any("lora_B" in name for name in moved)
    assert all("lora_" in name or name.startswith(("heads.", "world_heads.value.")) for name in moved)
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert not (checkpoint / "model.safetensors").exists()
    assert_same_weights(load_lora(make_trunk(), checkpoint), model)
