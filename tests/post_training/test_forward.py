"""The wrapped forward: one trunk pass, TRL's own numbers unchanged, and equal sums however a batch is laid out."""

import copy

import pytest
import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from worldmtp.objective.loss import evaluation_plan
from worldmtp.post_training.forward import DETACH_SWITCHES, HeadTask, add_mtp_forward
from worldmtp.post_training.token_sets import TokenChoice

OUTPUTS = ("log_probs", "entropy", "is_top1")
IGNORED = -100


@pytest.fixture
def wrapped(make_model):
    def make(**options):
        model = make_model(**options).double()
        add_fused_lm_head(model, outputs=OUTPUTS)
        return model, add_mtp_forward(model)

    return make


@pytest.fixture
def rows(demonstrations):
    return [demonstrations[i] for i in range(5)]


def pad(rows, side):
    """The rows as a batch padded on one side, built without TRL, which only pads on the right."""
    length = max(len(row["input_ids"]) for row in rows)
    batch = {"input_ids": [], "labels": [], "attention_mask": []}
    for row in rows:
        missing = length - len(row["input_ids"])
        for name, values, filler in (
            ("input_ids", row["input_ids"], 0),
            ("labels", row["labels"], IGNORED),
            ("attention_mask", [1] * len(row["input_ids"]), 0),
        ):
            padding = [filler] * missing
            batch[name].append(padding + values if side == "left" else values + padding)
    return {name: torch.tensor(values) for name, values in batch.items()}


def unpadded_sums(model, handle, rows):
    """Sums of the rows one by one: there is nothing to mask."""
    losses, counts = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    for row in rows:
        batch = {name: torch.tensor([row[name]]) for name in ("input_ids", "labels")}
        model(**batch, fused_lm_head=True)
        sums = handle.take().sums
        losses, counts = losses + sums.ce, counts + sums.counts
    return losses, counts


def test_left_right_and_packed_layouts_have_the_sums_of_the_single_rows(wrapped, rows):
    model, handle = wrapped()
    losses, counts = unpadded_sums(model, handle, rows)
    # A prompt has at least 4 tokens here, so every answer token and EOS is a target of depths 2 and 3.
    num_completion = sum(label != IGNORED for row in rows for label in row["labels"])
    assert counts.tolist() == [num_completion, num_completion]
    packed = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(rows)
    assert packed["input_ids"].shape[0] == 1
    for batch in (pad(rows, "right"), pad(rows, "left"), packed):
        model(**batch, fused_lm_head=True)
        sums = handle.take().sums
        assert sums.counts.tolist() == counts.tolist()
        # Qwen3's norms and rotary angles are computed in float32 even in a double model.
        torch.testing.assert_close(sums.ce, losses, rtol=1e-7, atol=0)


def test_full_text_packing_loses_exactly_the_targets_across_documents(wrapped, rows):
    model, handle = wrapped()
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows]
    model(**DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(rows), fused_lm_head=True)
    lengths = [len(row["input_ids"]) for row in rows]
    # a document of n tokens has n - k targets at depth k
    assert handle.take().sums.counts.tolist() == [sum(n - 2 for n in lengths), sum(n - 3 for n in lengths)]


def test_trls_own_outputs_are_untouched_and_the_sums_are_in_the_output(wrapped, make_model, rows):
    model, handle = wrapped()
    plain = make_model().double()
    add_fused_lm_head(plain, outputs=OUTPUTS)
    batch = pad(rows, "right")
    ours, theirs = model(**batch, fused_lm_head=True), plain(**batch, fused_lm_head=True)
    for name in ("loss", *OUTPUTS, "label_mask"):
        assert torch.equal(ours[name], theirs[name])
    loss = handle.take()
    assert ours.mtp_loss is loss.total
    # Cross-entropy under DeepSeek-V3's mean over the two later depths, unless an objective says otherwise.
    torch.testing.assert_close(loss.total, loss.sums.ce.sum(), rtol=1e-12, atol=0)


def test_the_trunk_runs_once_per_fused_forward(wrapped, rows):
    model, _ = wrapped(depth=4)
    calls = []
    model.base_model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    model(**pad(rows, "right"), fused_lm_head=True)
    assert len(calls) == 1


def test_the_later_depths_train_the_trunk_unless_detached(wrapped, rows):
    for options, is_trained in (({}, True), ({"detach_trunk": True, "detach_embedding": True}, False)):
        model, handle = wrapped(**options)
        model(**pad(rows, "right"), fused_lm_head=True)
        handle.take().total.backward()
        gradient = model.base_model.layers[0].mlp.up_proj.weight.grad
        assert (gradient is not None and gradient.abs().sum() > 0) == is_trained


def test_every_detach_switch_means_no_gradient_at_all(wrapped, rows):
    model, handle = wrapped(detach_trunk=True, detach_embedding=True, detach_lm_head=True)
    model(**pad(rows, "right"), fused_lm_head=True)
    handle.take().total.backward()
    assert all(parameter.grad is None for parameter in model.trunk.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.heads.parameters())


def test_the_plain_forward_with_labels_is_the_models_own(wrapped, make_model, rows):
    model, _ = wrapped()
    ours, theirs = model(**pad(rows, "right")), make_model().double()(**pad(rows, "right"))
    assert type(ours) is type(theirs)
    assert torch.equal(ours.loss, theirs.loss)
    assert all(torch.equal(a, b) for a, b in zip(ours.depth_logits, theirs.depth_logits, strict=True))


def test_generation_is_unchanged(wrapped, make_model):
    prompt = torch.tensor([[2, 3, 12, 4, 13]])
    options = {"max_new_tokens": 6, "do_sample": False}
    model, _ = wrapped()
    assert torch.equal(model.generate(prompt, **options), make_model().double().generate(prompt, **options))


def test_a_deep_copy_is_a_model_of_its_own(wrapped, rows):
    model, _ = wrapped()
    batch = pad(rows, "right")
    reference = copy.deepcopy(model)
    before = reference(**batch).loss
    with torch.no_grad():
        model.trunk.lm_head.weight.add_(1.0)
    assert torch.equal(reference(**batch).loss, before)
    assert not torch.equal(model(**batch).loss, before)
    with pytest.raises(RuntimeError, match="belongs to another model, of which this one is a copy"):
        reference(**batch, fused_lm_head=True)


def test_remove_leaves_the_class_forward_and_no_hook(wrapped):
    model, handle = wrapped()
    handle.remove()
    assert "forward" not in vars(model)
    assert len(model.base_model._forward_hooks) == 0


def test_errors_name_the_cause(wrapped, make_model, rows):
    with pytest.raises(RuntimeError, match="class's own forward, expected TRL's fused one"):
        add_mtp_forward(make_model())
    model, handle = wrapped()
    with pytest.raises(ValueError, match=r"needs labels and got \['input_ids'\]"):
        model(input_ids=torch.tensor([[2, 3]]), fused_lm_head=True)
    with pytest.raises(RuntimeError, match="was not called since they were last taken"):
        handle.take()


def test_a_model_of_depth_1_has_no_later_depths(wrapped, rows):
    model, handle = wrapped(depth=1)
    model(**pad(rows, "right"), fused_lm_head=True)
    assert handle.take().sums.ce.shape == (0,)


def test_passes_without_gradients_run_no_head_unless_they_are_measured(wrapped, rows):
    model, handle = wrapped()
    plan = evaluation_plan(3)
    with handle.during(HeadTask(plan)), torch.no_grad():
        output = model(**pad(rows, "right"), fused_lm_head=True)
        assert not hasattr(output, "mtp_loss")
        with pytest.raises(RuntimeError, match="was not called since they were last taken"):
            handle.take()
    with handle.during(HeadTask(plan, without_gradients=True)), torch.no_grad():
        model(**pad(rows, "right"), fused_lm_head=True)
        with handle.paused():
            model(**pad(rows, "right"), fused_lm_head=True)
        measured = handle.take()
    assert measured.num_targets == sum(label != IGNORED for row in rows for label in row["labels"])


def test_the_losses_of_several_passes_add_up(wrapped, rows):
    model, handle = wrapped()
    model(**pad(rows, "right"), fused_lm_head=True)
    whole = handle.take()
    for part in (rows[:2], rows[2:]):
        model(**pad(part, "right"), fused_lm_head=True)
    parts = handle.take()
    torch.testing.assert_close(parts.total, whole.total, rtol=1e-7, atol=0)
    assert parts.sums.counts.tolist() == whole.sums.counts.tolist()
    assert parts.num_targets == whole.num_targets
    parts.total.backward()
    assert all(weight.grad is not None for weight in model.heads.layers.parameters())


def test_rows_that_are_not_learnt_from_cost_nothing_and_change_nothing(wrapped, rows):
    model, handle = wrapped()
    batch = pad(rows, "right")
    kept = torch.tensor([True, False, True, False, False])
    shapes = []
    with handle.during(HeadTask(evaluation_plan(3), tokens=TokenChoice(rows=kept))):
        handle.model.heads.layers[0].register_forward_hook(lambda m, a, out: shapes.append(len(a[0])))
        model(**batch, fused_lm_head=True)
        found = handle.take()
    assert set(shapes) == {2}
    model(**pad([rows[0], rows[2]], "right"), fused_lm_head=True)
    alone = handle.take()
    torch.testing.assert_close(found.total, alone.total, rtol=1e-7, atol=0)
    with handle.during(HeadTask(evaluation_plan(3), tokens=TokenChoice(rows=torch.zeros(5, dtype=torch.bool)))):
        model(**batch, fused_lm_head=True)
        none = handle.take()
    assert (none.num_targets, none.total) == (0, 0)


@pytest.mark.parametrize("head", ["sequential", "parallel"])  # the second one uses the trunk's own final norm
def test_a_task_that_detaches_leaves_the_switches_as_they_were(wrapped, rows, head):
    model, handle = wrapped(head=head)
    with handle.during(HeadTask(evaluation_plan(3), detach=True)):
        model(**pad(rows, "right"), fused_lm_head=True)
        handle.take().total.backward()
    assert all(parameter.grad is None for parameter in model.trunk.parameters())
    assert not any(getattr(model.config, name) for name in DETACH_SWITCHES)


def test_a_reader_reads_every_pass_and_its_reading_is_in_the_output(wrapped, rows):
    model, handle = wrapped()
    handle.task = None
    handle.reader = lambda features, inputs: features.post_norm.sum(dim=-1) * inputs["attention_mask"]
    batch = pad(rows, "right")
    with torch.no_grad():
        scored = model(**batch, fused_lm_head=True).mtp_reading
    trained = model(**batch, fused_lm_head=True).mtp_reading
    torch.testing.assert_close(scored, trained.detach(), rtol=1e-12, atol=0)
    assert scored.shape == batch["input_ids"].shape
    trained.sum().backward()
    assert model.base_model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0
