"""MTPDPOTrainer: heads learn from the chosen half alone; the reference is the model as it is."""

import pytest
import torch

from worldmtp import MTPModel
from worldmtp.post_training import MTPDPOConfig
from worldmtp.post_training.dpo import chosen_half

ONE_STEP = {"per_device_train_batch_size": 16, "max_steps": 1, "optim": "sgd", "learning_rate": 0.1}


def heads_of(model):
    return torch.cat([weight.detach().flatten() for weight in model.heads.parameters()])


def test_heads_do_not_see_the_rejected_half(make_any, make_model, pairs):
    # One step: the rejected half would move the heads through nothing but their own loss.
    trained = []
    for changed in ("none", "rejected", "chosen"):
        rows = pairs.map(lambda row, name=changed: {name: row[name][::-1] + "+"} if name != "none" else {})
        model = make_model().double()
        make_any("DPO", model, train_dataset=rows, **ONE_STEP).train()
        trained.append(heads_of(model))
    same, other_rejected, other_chosen = trained
    assert (same - heads_of(make_model().double())).abs().max() > 1e-4
    torch.testing.assert_close(other_rejected, same, rtol=0, atol=1e-8)
    assert (other_chosen - same).abs().max() > 1e-4


@pytest.mark.parametrize("tokens", ["policy", "all"])
def test_logged_losses_are_means_over_the_chosen_tokens(make_any, make_model, char_tokenizer, pairs, tokens):
    trainer = make_any("DPO", make_model(), mtp_tokens=tokens, **ONE_STEP)
    trainer.train()
    model, total, count = make_model().eval(), 0.0, 0
    for row in pairs:
        prompt, answer = (char_tokenizer(row[name])["input_ids"] for name in ("prompt", "chosen"))
        ids = [*prompt, *answer, 1]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).depth_logits[1][0]
        for t in range(len(ids) - 2):
            if tokens == "all" or t + 2 >= len(prompt):
                total -= float(torch.log_softmax(logits[t], dim=-1)[ids[t + 2]])
                count += 1
    assert trainer.state.log_history[0]["mtp/loss_depth_2"] == pytest.approx(total / count, rel=1e-5)


def test_the_reference_is_the_model_in_memory_and_not_its_file(make_any, make_model, tmp_path):
    make_model().save_pretrained(tmp_path / "saved")
    model = MTPModel.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        for weight in model.trunk.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    trainer = make_any("DPO", model, **ONE_STEP)
    assert not any(isinstance(module, MTPModel) for module in trainer.ref_model.modules())
    assert not any(weight.requires_grad for weight in trainer.ref_model.parameters())
    trainer.train()
    assert trainer.state.log_history[0]["rewards/chosen"] == pytest.approx(0.0, abs=1e-6)


def test_precomputed_references_are_those_of_the_copy(make_any, make_model):
    losses = []
    for precompute in (False, True):
        trainer = make_any("DPO", make_model(), precompute_ref_log_probs=precompute, max_steps=3)
        trainer.train()
        losses.append([record["loss"] for record in trainer.state.log_history if "loss" in record])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_several_evaluation_sets_have_their_own_names(make_any, make_model, pairs):
    trainer = make_any("DPO", make_model())
    metrics = trainer.evaluate({"one": pairs.select(range(4)), "two": pairs.select(range(4, 16))})
    assert metrics["eval_one_mtp/loss_depth_2"] != metrics["eval_two_mtp/loss_depth_2"]
    assert {"eval_one_loss", "eval_two_loss"} <= metrics.keys()


def test_chosen_rows_are_the_first_half():
    assert chosen_half(torch.zeros(4, 3)).tolist() == [True, True, False, False]
    with pytest.raises(ValueError, match="a batch of pairs has 3 rows, expected an even number"):
        chosen_half(torch.zeros(3, 3))


def test_what_is_refused(make_any, make_model, make_config, pairs):
    with pytest.raises(ValueError, match=r"has the columns \['chosen', 'prompt'\], expected 'chosen', 'rejected'"):
        make_any("DPO", make_model(), train_dataset=pairs.remove_columns("rejected"))
    with pytest.raises(ValueError, match="sync_ref_model=True is not supported with MTP heads: TRL would mix"):
        make_config(MTPDPOConfig, sync_ref_model=True)
    with pytest.raises(ValueError, match="mtp_tokens='observation': the batches of MTPDPOConfig do not say"):
        make_config(MTPDPOConfig, mtp_tokens="observation")


@pytest.mark.parametrize("kind", ["DPO", "KTO"])
def test_pairs_that_prefer_nothing_are_refused(make_any, make_model, pairs, kind):
    alike = pairs.map(lambda row: {"rejected": row["chosen"]})
    with pytest.raises(ValueError, match=r"16 of the 16 pairs of train_dataset have equal answers, .* row 0: nothing"):
        make_any(kind, make_model(), train_dataset=alike)
    alone = pairs.map(lambda row, index: {"rejected": None if index in (3, 5) else "0"}, with_indices=True)
    with pytest.raises(ValueError, match=r"2 rows with one answer alone, the first is row 3: .* MTPKTOTrainer"):
        make_any(kind, make_model(), train_dataset=alone)


def test_some_equal_pairs_are_said(make_any, make_model, pairs):
    some = pairs.map(lambda row, index: {"rejected": row["chosen"] if index == 9 else ""}, with_indices=True)
    with pytest.warns(UserWarning, match=r"1 of the 16 pairs of train_dataset have equal answers, .* row 9, .*filter"):
        make_any("DPO", make_model(), train_dataset=some)
