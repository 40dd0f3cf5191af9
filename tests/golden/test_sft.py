"""Golden steps of supervised learning: each family of heads by the model's own loss, each kind of objective by SFT."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import nn
from transformers import PreTrainedTokenizerFast

from worldmtp import MTPModel
from worldmtp.post_training import MTPSFTConfig, MTPSFTTrainer, build_demonstrations

MakeModel = Callable[..., MTPModel]
Golden = Callable[..., None]
VOCAB = 2 + 256
TEXTS = ["a head predicts", "what follows, token by token:", "k tokens ahead, k = 1 to 4."]
STEPS = 3

FAMILIES: dict[str, dict[str, Any]] = {
    **{name: {"head": name} for name in ("blockwise", "eagle", "hydra", "latent", "linear", "medusa", "modulated")},
    "parallel": {"head": "parallel"},
    "sequential": {"head": "sequential"},
    "sequential_shared": {"head": "sequential", "share_depths": True},
    "sequential_detached": {"head": "sequential", "detach_trunk": True, "detach_embedding": True},
    "medusa_stride_2": {"head": "medusa", "stride": 2},
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "default": {},
    "divergences": {"terms": {"ce": 0.5, "kl": 1.0, "tv": 0.3, "latent": 0.7}, "depth_weighting": "medusa"},
    "end_to_end": {"terms": {"ce": 0.0, "e2e_tv": 1.0}, "depth_weighting": "uniform"},
    "moving_average": {"terms": {"ce": 0.0, "latent": 1.0}, "latent_target": "ema", "ema_decay": 0.9},
    "sampled": {"frequency": {"one_random_depth": True, "position_fraction": 0.5}},
    "scheduled": {
        "coef": {"kind": "linear", "start": 1.0, "end": 0.1, "duration": 1.0},
        "window": {"curriculum": "forward"},
    },
}
CHARACTERS = ["<pad>", "<eos>", *"0123456789+="]


def batch() -> dict[str, torch.Tensor]:
    """The texts as bytes behind pad 0 and EOS 1; the first five tokens of each are given and not to be learnt."""
    ids = [[2 + byte for byte in text.encode()] + [1] for text in TEXTS]
    longest = max(map(len, ids))
    input_ids = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    labels = torch.where(input_ids == 0, -100, input_ids)
    labels[:, :5] = -100
    return {"input_ids": input_ids, "attention_mask": input_ids != 0, "labels": labels}


def norm_of(module: nn.Module) -> float:
    gradients = [parameter.grad.norm() for parameter in module.parameters() if parameter.grad is not None]
    return float(torch.stack(gradients).norm()) if gradients else 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_of_a_family_are_the_recorded_ones(
    family: str, golden: Golden, drawn_model: MakeModel, weight_sums: Callable[[MTPModel], dict[str, float]]
) -> None:
    model = drawn_model(VOCAB, depth=4, **FAMILIES[family])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    trace: dict[str, Any] = {"loss": [], "loss_per_depth": [], "trunk_grad_norm": [], "heads_grad_norm": []}
    for _ in range(STEPS):
        output = model(**batch())
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        trace["loss"].append(output.loss.item())
        trace["loss_per_depth"].append(output.depth_losses.tolist())
        trace["trunk_grad_norm"].append(norm_of(model.trunk))
        trace["heads_grad_norm"].append(norm_of(model.heads))
        optimizer.step()
    golden("sft", family, trace | {"weights": weight_sums(model)})


@pytest.fixture
def demonstrations() -> Any:
    """16 sums of unequal length, as "1+19=20"."""
    pairs = []
    for left in range(16):
        prompt, answer = f"{left}+{left * left + 18}=", str(left + left * left + 18)
        pairs.append(([CHARACTERS.index(c) for c in prompt], [CHARACTERS.index(c) for c in answer]))
    return build_demonstrations(pairs, eos_token_id=1, vocab_size=len(CHARACTERS))


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    vocab = {character: token_id for token_id, character in enumerate(CHARACTERS)}
    word_level = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=word_level, pad_token="<pad>", eos_token="<eos>")


@pytest.mark.usefixtures("losses_in_float64")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_steps_of_an_objective_are_the_recorded_ones(
    objective: str,
    golden: Golden,
    drawn_model: MakeModel,
    weight_sums: Callable[[MTPModel], dict[str, float]],
    demonstrations: Any,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    model = drawn_model(len(CHARACTERS), depth=4, head="sequential")
    config = MTPSFTConfig(
        str(tmp_path),
        mtp_objective=OBJECTIVES[objective],
        max_steps=STEPS,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = MTPSFTTrainer(model, config, train_dataset=demonstrations, processing_class=tokenizer)
    trainer.train()
    steps = [record for record in trainer.state.log_history if "loss" in record]
    logged = {name for record in steps for name in record}
    names = sorted(name for name in logged if name in ("loss", "grad_norm") or name.startswith("mtp/"))
    assert len(steps) == STEPS
    assert any(name.startswith("mtp/loss_depth_") for name in names)
    trace = {name: [record.get(name) for record in steps] for name in names}
    golden("sft", f"objective_{objective}", trace | {"weights": weight_sums(model)})


def test_every_record_is_compared(recorded: Callable[[str], set[str]]) -> None:
    assert recorded("sft") == {*FAMILIES, *(f"objective_{name}" for name in OBJECTIVES)}
