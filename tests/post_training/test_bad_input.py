"""Bad input of each trainer: a clear error before anything is trained, or a documented result."""

import math

import pytest
import torch
from datasets import Dataset

KINDS = ("SFT", "DPO", "KTO", "GRPO", "RLOO", "PPO")
SAMPLING = ("GRPO", "RLOO", "PPO")
EOS = 1


def logged(trainer, name):
    return [record[name] for record in trainer.state.log_history if name in record]


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_set_without_the_columns_is_refused_by_their_names(make_any, make_model, kind):
    rows = Dataset.from_list([{"question": "1+1=", "reply": "2"}] * 16)
    with pytest.raises(ValueError, match=r"train_dataset has the columns \['question', 'reply'\], expected '"):
        make_any(kind, make_model(), train_dataset=rows)


@pytest.mark.parametrize("kind", SAMPLING)
def test_prompts_that_fill_no_sampled_batch_are_refused(make_any, make_model, kind):
    with pytest.raises(ValueError, match=r"train_dataset has 1 prompts and a sampled batch .*, so no step would be"):
        make_any(kind, make_model(), train_dataset=Dataset.from_list([{"prompt": "1+1="}]))


@pytest.mark.parametrize("kind", SAMPLING)
@pytest.mark.parametrize("name", ["peft_config", "quantization_config", "rollout_funk"])
def test_arguments_that_trls_trainers_take_and_these_do_not_are_refused(make_any, make_model, kind, name):
    with pytest.raises(TypeError, match=rf"MTP{kind}Trainer takes no argument '{name}'"):
        make_any(kind, make_model(), extra={name: {}})


def test_rloo_takes_no_rollout_function(make_any, make_model):
    with pytest.raises(TypeError, match="MTPRLOOTrainer takes no argument 'rollout_func'"):
        make_any("RLOO", make_model(), extra={"rollout_func": print})


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_depth_1_has_no_heads_and_is_trained_as_trl_would(make_any, make_model, kind):
    model = make_model(depth=1)
    before = {name: weight.clone() for name, weight in model.trunk.state_dict().items()}
    trainer = make_any(kind, model, max_steps=2)
    trainer.train()
    assert all(math.isfinite(loss) for loss in logged(trainer, "loss"))
    assert logged(trainer, "mtp/loss_depth_2") == []
    assert any(not torch.equal(weight, before[name]) for name, weight in model.trunk.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_whose_pad_is_its_eos_teaches_where_a_text_ends(make_any, make_model, char_tokenizer, kind):
    """Each target is counted: as many as the texts have labelled tokens, their EOS among them and no padding."""
    char_tokenizer.pad_token = char_tokenizer.eos_token
    trainer = make_any(kind, make_model(), max_steps=1)
    counts, learnt = [], []
    run, add = trainer.mtp_forward._run, trainer._add_depths

    def spied(task, features, inputs):
        texts = {name: inputs.get(name) for name in ("input_ids", "attention_mask", "position_ids")}
        learnt.append(task.tokens.labels(labels=inputs["labels"], **texts))
        return run(task, features, inputs)

    trainer.mtp_forward._run = spied
    trainer._add_depths = lambda later: counts.append(int(later.num_targets)) or add(later)
    trainer.train()
    (labels,) = learnt
    assert counts == [int((labels[:, 1:] != -100).sum())]
    ends = (labels == EOS).sum(dim=1)
    assert int(ends.max()) == 1  # padding is nobody's target
    if kind not in SAMPLING:  # there a completion may be cut off
        taught = (labels != -100).any(dim=1)
        assert bool((ends[taught] == 1).all())


@pytest.mark.parametrize("kind", SAMPLING)
@pytest.mark.parametrize("reward", [None, math.nan])
def test_rewards_that_score_nothing_move_nothing_of_the_trunk(make_any, make_model, kind, reward):
    model, before = make_model(), make_model()
    given = {"reward_funcs": lambda completions, **_: [reward] * len(completions)}
    trainer = make_any(kind, model, max_steps=1, extra=given, beta=0.0)
    trainer.train()
    assert all(math.isfinite(loss) for loss in logged(trainer, "loss"))
    torch.testing.assert_close(model.trunk.state_dict(), before.trunk.state_dict(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", SAMPLING)
def test_a_reward_that_raises_loses_nothing_of_the_run(make_any, make_model, tmp_path, kind):
    calls = []

    def breaks_later(completions, **_):
        calls.append(len(completions))
        if len(calls) == 3:
            raise ZeroDivisionError("in the reward")
        return [i / 10 for i in range(len(completions))]

    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "extra": {"reward_funcs": breaks_later}}
    with pytest.raises(ZeroDivisionError, match="in the reward"):
        make_any(kind, make_model(), **options).train()
    resumed = make_any(kind, make_model(), **options)  # the third call was the last that fails
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert resumed.state.global_step == 4


@pytest.mark.parametrize("kind", ["DPO", "KTO"])
def test_an_empty_answer_is_its_eos(make_any, make_model, pairs, kind):
    rows = pairs.map(lambda row: {"chosen": ""})
    trainer = make_any(kind, make_model(), train_dataset=rows, max_steps=2)
    trainer.train()
    assert all(math.isfinite(loss) for loss in logged(trainer, "loss"))


@pytest.mark.parametrize("loss_type", ["ipo", "sigmoid_norm"])
def test_normalisation_by_length_is_trls(make_any, make_model, make_trunk, loss_type):
    plain, model = make_trunk(), make_model()
    options = {"max_steps": 3, "loss_type": loss_type, "learning_rate": 1e-3}
    theirs = make_any("DPO", plain, **options)
    theirs.train()
    ours = make_any("DPO", model, mtp_objective={"coef": {"start": 100.0}}, **options)
    ours.train()
    assert all(map(torch.equal, model.trunk.parameters(), plain.parameters()))
    assert logged(ours, "rewards/margins") == logged(theirs, "rewards/margins")
