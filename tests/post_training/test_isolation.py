"""Detached heads leave the trunk where plain SFT would have brought it, to the bit, with gradients clipped as usual."""

import itertools

import pytest
import torch
from trl import SFTConfig, SFTTrainer

DETACHED = {"detach_trunk": True, "detach_embedding": True, "detach_lm_head": True}
# All terms with a teacher, which is the trunk: none of them may reach it either. A huge lambda makes huge gradients.
OBJECTIVE = {"terms": {"ce": 1.0, "kl": 1.0, "tv": 1.0, "e2e_tv": 1.0, "latent": 1.0}, "coef": {"start": 1000.0}}
OPTIONS = {"max_steps": 2, "per_device_train_batch_size": 8, "weight_decay": 0.1, "mtp_objective": OBJECTIVE}
FAMILIES = ("sequential", "latent", "medusa", "parallel", "eagle")
QUICK = {
    ("sequential", True, 1),
    ("sequential", False, 4),
    ("latent", True, 4),
    ("medusa", False, 1),
    ("parallel", True, 1),
    ("eagle", False, 4),
}
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in itertools.product(FAMILIES, (True, False), (1, 4))
]


@pytest.fixture(scope="module")
def plain_sft():
    """Weights of a plain trunk after TRL's own trainer, by what it was trained with; each is trained once."""
    return {}


@pytest.fixture
def plain_weights(plain_sft, make_config, make_trunk, tokenizer, demonstrations):
    def weights(tied, accumulation):
        if (tied, accumulation) not in plain_sft:
            trunk = make_trunk(tied=tied)
            options = {name: value for name, value in OPTIONS.items() if not name.startswith("mtp_")}
            options |= {"gradient_accumulation_steps": accumulation}
            config = make_config(SFTConfig, bf16=False, activation_checkpointing=False, **options)
            assert config.max_grad_norm == 1.0
            SFTTrainer(trunk, config, train_dataset=demonstrations, processing_class=tokenizer).train()
            plain_sft[tied, accumulation] = trunk.state_dict()
        return plain_sft[tied, accumulation]

    return weights


def enlarge(heads):
    """Gradients of the heads far above max_grad_norm: in one group with the trunk's, they would shrink those."""
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.mul_(20.0)


def differing(model, expected):
    ours = model.trunk.state_dict()
    assert ours.keys() == expected.keys()
    return [name for name in ours if not torch.equal(ours[name], expected[name])]


@pytest.mark.parametrize(("head", "tied", "accumulation"), CASES)
def test_the_trunk_is_plain_sfts(make_trainer, make_model, plain_weights, head, tied, accumulation):
    model = make_model(head=head, tied=tied, **DETACHED)
    enlarge(model.heads)
    before = {name: value.clone() for name, value in model.heads.named_parameters()}
    trainer = make_trainer(model, gradient_accumulation_steps=accumulation, **OPTIONS)
    norms = spy_on_norms(trainer)
    trainer.train()
    assert differing(model, plain_weights(tied, accumulation)) == []
    # Not vacuous: the trunk's gradients were clipped, the heads' were larger, and the heads have moved.
    assert all(trunk > 1 and heads > 10 for trunk, heads in norms)
    assert not any(torch.equal(value, before[name]) for name, value in model.heads.named_parameters())


def spy_on_norms(trainer):
    """The norms of the trunk's and the heads' gradients before each clipping."""
    found = []
    clip = trainer._clip_grad_norm

    def norm(module):
        return float(torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm())

    def spy(model):
        found.append((norm(model.trunk), norm(model.heads)))
        return clip(model)

    trainer._clip_grad_norm = spy
    return found


def test_one_group_of_gradients_would_be_noticed(make_trainer, make_model, plain_weights):
    model = make_model(**DETACHED)
    enlarge(model.heads)
    trainer = make_trainer(model, **OPTIONS)
    trainer._clip_grad_norm = lambda module: torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    trainer.train()
    assert differing(model, plain_weights(True, 1))


@pytest.mark.parametrize("switch", DETACHED)
def test_one_open_switch_would_be_noticed(make_trainer, make_model, plain_weights, switch):
    model = make_model(**{**DETACHED, switch: False})
    make_trainer(model, **OPTIONS).train()
    assert differing(model, plain_weights(True, 1))


def test_the_logged_norm_is_the_trunks(make_trainer, make_model):
    trainer = make_trainer(make_model(**DETACHED), **OPTIONS)
    norms = spy_on_norms(trainer)
    trainer.train()
    logged = [record["grad_norm"] for record in trainer.state.log_history if "grad_norm" in record]
    assert logged == pytest.approx([trunk for trunk, _ in norms], rel=1e-5)
