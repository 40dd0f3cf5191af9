"""MTPKTOTrainer: heads learn from desirable completions alone, and not in the passes that estimate KL."""

import pytest
import torch
from datasets import Dataset

ONE_STEP = {"per_device_train_batch_size": 4, "max_steps": 1, "optim": "sgd", "learning_rate": 0.1}
ROWS = [
    {"prompt": "1+1=", "completion": "2", "label": True},
    {"prompt": "1+2=", "completion": "9", "label": False},
    {"prompt": "12+3=", "completion": "15", "label": True},
    {"prompt": "3+3=", "completion": "123", "label": False},
]


def heads_of(model):
    return torch.cat([weight.detach().flatten() for weight in model.heads.parameters()])


def test_heads_learn_from_desirable_completions_alone(make_any, make_model):
    trained = []
    for changed in (None, 1, 0):
        rows = [dict(row, completion=row["completion"] + "0") if i == changed else row for i, row in enumerate(ROWS)]
        model = make_model().double()
        make_any("KTO", model, train_dataset=Dataset.from_list(rows), **ONE_STEP).train()
        trained.append(heads_of(model))
    same, other_undesirable, other_desirable = trained
    assert (same - heads_of(make_model().double())).abs().max() > 1e-4
    torch.testing.assert_close(other_undesirable, same, rtol=0, atol=1e-8)
    assert (other_desirable - same).abs().max() > 1e-4


@pytest.mark.parametrize("evaluated", [False, True])
def test_means_are_those_of_the_desirable_rows(make_any, make_model, char_tokenizer, evaluated):
    trainer = make_any("KTO", make_model(), train_dataset=Dataset.from_list(ROWS), **ONE_STEP)
    if evaluated:
        found = trainer.evaluate(Dataset.from_list(ROWS))["eval_mtp/loss_depth_3"]
    else:
        trainer.train()
        found = trainer.state.log_history[0]["mtp/loss_depth_3"]
    model, total, count = make_model().eval(), 0.0, 0
    for row in ROWS[::2]:
        prompt = char_tokenizer(row["prompt"])["input_ids"]
        ids = [*prompt, *char_tokenizer(row["completion"])["input_ids"], 1]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).depth_logits[2][0]
        for t in range(len(prompt) - 3, len(ids) - 3):
            total -= float(torch.log_softmax(logits[t], dim=-1)[ids[t + 3]])
            count += 1
    assert found == pytest.approx(total / count, rel=1e-5)


def test_a_step_of_undesirable_rows_moves_no_head(make_any, make_model):
    rows = Dataset.from_list([dict(row, label=False) for row in ROWS])
    model = make_model()
    before = heads_of(model)
    with pytest.warns(UserWarning, match="no completion of train_dataset is desirable: the heads have nothing"):
        trainer = make_any("KTO", model, train_dataset=rows, **ONE_STEP)
    trainer.train()
    assert torch.equal(heads_of(model), before)


def test_columns_are_asked_for(make_any, make_model, prompts):
    with pytest.raises(
        ValueError, match=r"\['prompt'\], expected 'completion', 'label' or 'chosen', 'rejected'; rename"
    ):
        make_any("KTO", make_model(), train_dataset=prompts)
