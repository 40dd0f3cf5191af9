"""Going on from a checkpoint is as not having been stopped, to the bit, in the middle of a sampled batch too."""

import peft
import pytest
import torch

from worldmtp import MTPModel
from worldmtp.model.lora import add_lora

SAMPLING = ("GRPO", "RLOO", "PPO")
SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 7, "per_device_train_batch_size": 4}
TWICE = {"num_iterations": 2, "steps_per_generation": 2}
"""A batch is sampled for four steps: after the first, the third and the fifth one is in use."""


@pytest.fixture
def train(make_any, make_model, tmp_path):
    def run(kind, name, model=None, checkpoint=None, **options):
        trainer = make_any(kind, model or make_model(), output_dir=tmp_path / name, **{**SAVING, **options})
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(tmp_path / checkpoint))
        return trainer

    return run


def losses_of(trainer):
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def assert_same_run(resumed, whole):
    assert losses_of(resumed) == losses_of(whole)
    expected = whole.mtp_forward.model.state_dict()
    differing = [n for n, w in resumed.mtp_forward.model.state_dict().items() if not torch.equal(w, expected[n])]
    assert differing == []


def spoilt(model):
    """Other heads, which the checkpoint replaces; the trunk stays, as the reference is made of it."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith(("heads.", "world_heads.")):
                weight.normal_(std=0.1)
    return model


@pytest.mark.parametrize("kind", ["DPO", "KTO"])
def test_preferences(train, make_model, kind):
    whole = train(kind, "whole")
    assert_same_run(train(kind, "resumed", spoilt(make_model()), "whole/checkpoint-3"), whole)


@pytest.mark.parametrize("kind", SAMPLING)
def test_in_the_middle_of_a_sampled_batch_and_at_its_end(train, make_model, tmp_path, kind):
    whole = train(kind, "whole", **TWICE)
    for step in (3, 4, 5):
        checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
        assert (checkpoint / "sampled_batch_0.pt").is_file() == (step != 4)
        resumed = train(kind, f"resumed {step}", spoilt(make_model()), f"whole/checkpoint-{step}", **TWICE)
        assert_same_run(resumed, whole)


@pytest.mark.parametrize("kind", ["SFT", "DPO", "KTO", *SAMPLING])
def test_resumed_at_its_end_no_step_is_made(train, make_model, kind):
    whole = train(kind, "whole", max_steps=3)
    resumed = train(kind, "resumed", spoilt(make_model()), "whole/checkpoint-3", max_steps=3)
    assert resumed.state.global_step == 3
    assert_same_run(resumed, whole)


@pytest.mark.parametrize("kind", SAMPLING)
def test_with_adapters_heads_and_a_value_head(train, make_model, kind):
    def adapted(seed):
        generator = torch.Generator().manual_seed(seed)
        return add_lora(make_model(), peft.LoraConfig(r=4, target_modules="all-linear"), generator)

    whole = train(kind, "whole", adapted(0), **TWICE)
    assert_same_run(train(kind, "resumed", spoilt(adapted(1)), "whole/checkpoint-3", **TWICE), whole)


def test_a_checkpoint_without_its_batch_samples_anew_and_says_so(train, make_model, tmp_path):
    whole = train("GRPO", "whole", **TWICE)
    (tmp_path / "whole" / "checkpoint-3" / "sampled_batch_0.pt").unlink()
    with pytest.warns(UserWarning, match=r"checkpoint-3 stands in the middle of a sampled batch and has no sampled_b"):
        resumed = train("GRPO", "resumed", make_model(), "whole/checkpoint-3", **TWICE)
    assert losses_of(resumed)[:3] == losses_of(whole)[:3]
    assert losses_of(resumed)[3:] != losses_of(whole)[3:]


def test_a_batch_of_other_steps_is_refused(train, make_model, recwarn):
    train("PPO", "whole", **TWICE)
    with pytest.raises(ValueError, match=r"of a batch sampled with \{'num_iterations': 2\}, this trainer has"):
        train("PPO", "resumed", make_model(), "whole/checkpoint-3", **{**TWICE, "num_iterations": 3})


def test_the_saved_model_is_whole(train, tmp_path):
    whole = train("PPO", "whole", **TWICE)
    loaded = MTPModel.from_pretrained(tmp_path / "whole" / "checkpoint-7").state_dict()
    for name, weight in whole.mtp_forward.model.state_dict().items():
        assert torch.equal(loaded[name], weight), name
