"""The depths' metrics are means per target: of any micro-batches, of several evaluation sets, over several steps."""

import pytest
import torch
from datasets import Dataset

from worldmtp.post_training.metrics import DepthMeans

NAMES = [f"{name}_depth_{k}" for name in ("loss", "top1", "acceptance") for k in (2, 3)]


def text(num_prompt, num_answer, seed):
    """Random tokens; those of the answer and EOS are labelled."""
    generator = torch.Generator().manual_seed(seed)
    ids = [*torch.randint(2, 14, (num_prompt + num_answer,), generator=generator).tolist(), 1]
    return {"input_ids": ids, "labels": [-100] * num_prompt + ids[num_prompt:]}


@pytest.fixture
def ragged():
    """Rows of 3 to 30 labels: means of micro-batches' means are far from the mean per target."""
    return Dataset.from_list([text(2, num_answer, num_answer) for num_answer in (2, 29, 3, 25, 2, 4, 20, 6)])


@torch.no_grad()
def by_hand(model, rows):
    """Mean cross-entropy, first guesses and acceptance of depths 2 and 3, position by position."""
    sums, counts = dict.fromkeys(NAMES, 0.0), {2: 0, 3: 0}
    for row in rows:
        output = model(torch.tensor([row["input_ids"]]))
        trunk = torch.softmax(output.depth_logits[0][0].double(), dim=-1)
        for k in (2, 3):
            heads = torch.softmax(output.depth_logits[k - 1][0].double(), dim=-1)
            for t in range(len(row["labels"]) - k):
                label = row["labels"][t + k]
                if label != -100:
                    counts[k] += 1
                    sums[f"loss_depth_{k}"] -= float(heads[t, label].log())
                    sums[f"top1_depth_{k}"] += int(heads[t].argmax()) == label
                    sums[f"acceptance_depth_{k}"] += float(torch.minimum(heads[t], trunk[t + k - 1]).sum())
    return {name: total / counts[int(name[-1])] for name, total in sums.items()}


@pytest.mark.parametrize("size", [8, 2, 1])
def test_the_size_of_a_micro_batch_does_not_show(make_trainer, make_model, ragged, size):
    expected = by_hand(make_model().eval(), ragged)
    objective = {"terms": {"ce": 1.0, "kl": 0.1}}  # with a teacher, so that training measures acceptance, too
    options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
    options |= {"per_device_eval_batch_size": size, "max_steps": 1, "learning_rate": 0.0}
    trainer = make_trainer(make_model(), train_dataset=ragged, eval_dataset=ragged, mtp_objective=objective, **options)
    trainer.train()
    trained, evaluated = trainer.state.log_history[0], trainer.evaluate()
    for name in NAMES:
        assert trained[f"mtp/{name}"] == pytest.approx(expected[name], rel=1e-5)
        assert evaluated[f"eval_mtp/{name}"] == pytest.approx(expected[name], rel=1e-5)


def test_a_log_over_several_steps_weighs_targets_and_begins_anew(make_trainer, make_model, ragged):
    expected = by_hand(make_model().eval(), ragged)
    options = {"per_device_train_batch_size": 2, "max_steps": 8, "logging_steps": 4, "learning_rate": 0.0}
    trainer = make_trainer(make_model(), train_dataset=ragged, **options)
    trainer.train()
    records = [record for record in trainer.state.log_history if "mtp/loss_depth_2" in record]
    assert [record["step"] for record in records] == [4, 8]  # each a pass over all rows
    for record in records:
        assert record["mtp/loss_depth_3"] == pytest.approx(expected["loss_depth_3"], rel=1e-5)


def test_every_evaluation_set_has_its_own_name(make_trainer, make_model, ragged):
    long, short = ragged.select([1, 3, 6]), ragged.select([0, 2, 4])
    trainer = make_trainer(make_model(), eval_dataset={"long": long, "short": short})
    metrics = trainer.evaluate()
    assert "eval_mtp/loss_depth_2" not in metrics
    for name, rows in (("long", long), ("short", short)):
        expected = by_hand(make_model().eval(), rows)
        assert f"eval_{name}_loss" in metrics
        for key in NAMES:
            assert metrics[f"eval_{name}_mtp/{key}"] == pytest.approx(expected[key], rel=1e-5)
    # Sets given by the call are named by it, as their loss is.
    assert "eval_other_mtp/loss_depth_2" in trainer.evaluate({"other": short})
    assert "test_mtp/loss_depth_2" in trainer.evaluate(short, metric_key_prefix="test")


def test_the_best_model_may_be_that_of_one_set(make_trainer, make_model, ragged):
    trainer = make_trainer(
        make_model(),
        eval_dataset={"long": ragged.select([1, 3]), "short": ragged.select([0, 2])},
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_short_mtp/loss_depth_2",
        greater_is_better=False,
    )
    trainer.train()
    logged = [
        record["eval_short_mtp/loss_depth_2"] for record in trainer.state.log_history if "eval_short_loss" in record
    ]
    assert trainer.state.best_metric == min(logged)
    assert trainer.evaluate()["eval_short_mtp/loss_depth_2"] == pytest.approx(min(logged), rel=1e-5)


def test_sums_and_counts_by_hand():
    means = DepthMeans(num_depths=4)

    def add(depths, rows, counts, num_targets, accepts):
        sums = torch.tensor(rows, dtype=torch.float64).reshape(3, len(depths))
        means.add(depths, sums, torch.tensor(counts), torch.tensor(num_targets), accepts)

    add((2, 3), [[6.0, 1.0], [2.0, 0.0], [1.5, 0.0]], [3, 1], 4, accepts=True)
    add((2,), [[2.0], [0.0], [0.9]], [1], 1, accepts=False)  # acceptance not measured: it moves no mean
    add((), [[], [], []], [], 2, accepts=True)
    assert means.num_batches == 3
    assert means.take("eval_", lambda sums: sums) == (
        {
            "eval_mtp/loss_depth_2": 2.0,
            "eval_mtp/top1_depth_2": 0.5,
            "eval_mtp/acceptance_depth_2": 0.5,
            "eval_mtp/loss_depth_3": 1.0,
            "eval_mtp/top1_depth_3": 0.0,
            "eval_mtp/acceptance_depth_3": 0.0,
        },
        7,
    )
    assert means.take("eval_", lambda sums: sums) == ({}, 0)
    assert means.num_batches == 0
