"""Padding to a multiple, packing with other tokens, adapters, resuming and reloading, for the trainers beyond SFT."""

import peft
import pytest
import torch

from worldmtp import MTPModel
from worldmtp.model.lora import add_lora
from worldmtp.post_training.guards import check_model

KINDS = ("DPO", "KTO", "GRPO", "RLOO")
NAMES = ("mtp/loss_depth_2", "mtp/loss_depth_3", "mtp/top1_depth_2")


def logged(trainer, *names):
    return [[record.get(name) for name in names] for record in trainer.state.log_history if names[0] in record]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_to_a_multiple_changes_no_loss(make_any, make_model, kind):
    found = []
    for multiple in (None, 16):
        model = make_model().double()
        options = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 2, "pad_to_multiple_of": multiple}
        if kind in ("GRPO", "RLOO"):
            options["generation_kwargs"] = {"do_sample": False}
        trainer = make_any(kind, model, mtp_tokens="all", **options)
        trainer.train()
        found.append((logged(trainer, *NAMES), model))
    (padded, one), (longer, other) = found
    for ours, theirs in zip(longer, padded, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    for ours, theirs in zip(other.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tokens", ["policy", "completion", "all"])
def test_sft_on_any_tokens_is_the_same_padded_and_packed(make_any, make_model, tokens):
    models = []
    for layout in ({}, {"padding_free": True, "max_length": None}):
        models.append(make_model().double())
        options = {"max_steps": 1, "per_device_train_batch_size": 32, "optim": "sgd", "learning_rate": 0.1}
        trainer = make_any("SFT", models[-1], mtp_tokens=tokens, **options, **layout)
        trainer.train()
        models.append(logged(trainer, *NAMES)[0])
    padded, expected, packed, found = models
    assert found == pytest.approx(expected, abs=1e-5)
    for ours, theirs in zip(packed.parameters(), padded.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_accumulating_other_tokens_in_sft_changes_nothing(make_any, make_model):
    models = []
    for batch, accumulation in ((8, 1), (2, 4)):
        models.append(make_model().double())
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 2}
        make_any("SFT", models[-1], mtp_tokens="all", optim="sgd", learning_rate=0.1, **options).train()
    for ours, theirs in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_and_heads_move_and_are_saved(make_any, make_model, tmp_path, kind):
    config = peft.LoraConfig(r=4, target_modules="all-linear")
    model = add_lora(make_model(), config, torch.Generator().manual_seed(0))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    if kind in ("GRPO", "RLOO"):
        options["beta"] = 0.1
    make_any(kind, model, **options).train()
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if "lora_" in name or name.startswith("heads.")}
    assert not (tmp_path / "run" / "checkpoint-2" / "model.safetensors").exists()


def test_pefts_wrapper_is_refused(make_model):
    wrapped = peft.get_peft_model(make_model(), peft.LoraConfig(r=4, target_modules=["q_proj"]))
    with pytest.raises(
        TypeError, match=r"model is PEFT's wrapper PeftModel, which would freeze the heads; put adapters"
    ):
        check_model(wrapped)


@pytest.mark.parametrize("kind", ["DPO", "KTO", "GRPO", "RLOO"])
def test_a_resumed_run_is_the_uninterrupted_one_and_reloads_whole(make_any, make_model, tmp_path, kind):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    if kind in ("GRPO", "RLOO"):
        options["beta"] = 0.0  # a reference is the model as it is when the trainer is made
    whole = make_model()
    reference = {"extra": {"ref_model": make_model().trunk}} if kind in ("DPO", "KTO") else {}
    uninterrupted = make_any(kind, whole, **reference, **options)
    uninterrupted.train()
    resumed = make_model(seed=1)
    trainer = make_any(kind, resumed, **reference, **options, output_dir=tmp_path / "resumed")
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert logged(trainer, "loss", *NAMES) == logged(uninterrupted, "loss", *NAMES)
    loaded = MTPModel.from_pretrained(tmp_path / "resumed" / "checkpoint-4")
    expected = dict(whole.named_parameters())
    for model in (resumed, loaded):
        assert [name for name, weight in model.named_parameters() if not torch.equal(weight, expected[name])] == []


def test_the_heads_own_bound_on_gradients(make_any, make_model):
    model = make_model()
    trainer = make_any("SFT", model, mtp_max_grad_norm=1e-3, max_grad_norm=1.0, max_steps=1)
    seen = []
    clip = trainer._clip_grad_norm

    def norm(parameters):
        return float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm())

    def spy(module):
        result = clip(module)
        seen.extend([norm(model.trunk.parameters()), norm(model.heads.parameters())])
        return result

    trainer._clip_grad_norm = spy
    trainer.train()
    assert seen[0] > 0.1
    assert seen[1] == pytest.approx(1e-3, rel=1e-2)
    with pytest.raises(ValueError, match=r"mtp_max_grad_norm=-1 must be positive, beside a positive max_grad_norm"):
        make_any("SFT", make_model(), mtp_max_grad_norm=-1)


@pytest.mark.parametrize(
    "terms", [{"ce": 0, "nla": 1}, {"ce": 0, "lk_hybrid": 1}, {"ce": 0, "kl": 1}, {"ce": 0, "tv": 1}]
)
def test_losses_against_the_trunk_raise_the_acceptance(make_any, make_model, terms):
    model = make_model(tied=False)
    model.trunk.requires_grad_(False)
    model.trunk.lm_head.weight.mul_(20.0)  # away from the uniform guess, on which all agree
    options = {"mtp_objective": {"terms": terms, "coef": {"start": 1.0}}, "max_steps": 30}
    trainer = make_any("SFT", model, **options)
    trainer.train()
    found = [values[0] for values in logged(trainer, "mtp/acceptance_depth_2")]
    assert found[-1] > found[0] + 0.05
