"""MTPGRPOTrainer and MTPRLOOTrainer: how they sample, what the heads learn, the reference, bad rewards, known traps."""

import functools
import math
import pickle

import peft
import pytest
import torch
from datasets import Dataset
from torch import nn

from worldmtp import MTPModel
from worldmtp.post_training import MTPGRPOConfig, MTPRLOOConfig, env_reward
from worldmtp.post_training.compat import IncompatibleTRLError
from worldmtp.post_training.guards import check_model
from worldmtp.post_training.on_policy import checked_reward

KINDS = ("GRPO", "RLOO")
EOS = 1


def logged(trainer, name):
    return [record[name] for record in trainer.state.log_history if name in record]


def generated(trainer, reward=lambda ids: 0.0):
    """What a trainer's sampled completions are, by spying on its reward function."""
    seen = []
    trainer.reward_funcs = [
        lambda completion_ids, **_: seen.extend(completion_ids) or [reward(i) for i in completion_ids]
    ]
    return seen


# ---------------------------------------------------------------------------------------------------------------------
# Sampling
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_completions_are_hugging_faces_with_fewer_forwards(make_any, make_model, kind):
    texts = {}
    for draft in ("trl", "none", "mtp"):
        model, modes = make_model(), []
        options = {"mtp_draft": draft, "generation_kwargs": {"do_sample": False}, "beta": 0.0}
        trainer = make_any(kind, model, per_device_train_batch_size=8, max_steps=1, learning_rate=0.0, **options)
        model.base_model.layers[0].mlp.register_forward_hook(lambda m, *_, modes=modes: modes.append(m.training))
        texts[draft] = generated(trainer)
        trainer.train()
        assert logged(trainer, "mtp/tokens_per_forward") == {"trl": [], "none": [1.0]}.get(
            draft, logged(trainer, "mtp/tokens_per_forward")
        )
        if draft == "trl":  # the others may run the trunk without its modules
            assert modes == sorted(modes)  # sampled in evaluation mode, then passes to learn
            assert {*modes} == {False, True}
    assert texts["trl"] == texts["none"] == texts["mtp"]
    assert 1 <= logged(trainer, "mtp/tokens_per_forward")[0] <= 3
    assert all(0 <= logged(trainer, f"mtp/accepted_depth_{k}")[0] <= 1 for k in (2, 3))


def test_what_drafts_do_not_follow_is_sampled_by_hugging_face_and_said_once(make_any, make_model):
    trainer = make_any("GRPO", make_model(), min_p=0.1, max_steps=2)
    with pytest.warns(UserWarning, match=r"generation with \{'min_p': 0.1\} is Hugging Face's") as caught:
        trainer.train()
    assert len([one for one in caught if "min_p" in str(one.message)]) == 1
    assert not logged(trainer, "mtp/tokens_per_forward")


def test_equal_seeds_sample_equal_texts_and_a_copy_keeps_its_own_generate(make_any, make_model):
    runs = []
    for seed in (0, 0, 1):
        trainer = make_any("GRPO", make_model(), seed=seed, max_steps=1)
        runs.append(generated(trainer))
        trainer.train()
    assert runs[0] == runs[1] != runs[2]
    model = trainer.release_model()
    assert not {"forward", "generate"} & set(vars(model))


def test_another_way_of_sampling_is_noticed(make_any, make_model):
    trainer = make_any("GRPO", make_model(), max_steps=1)
    trainer.mtp_generation.remove()  # as if TRL no longer called model.generate
    with pytest.raises(IncompatibleTRLError, match=r"MTPGRPOTrainer has sampled without model\.generate"):
        trainer.train()


def test_another_batch_than_was_sampled_is_noticed(make_any, make_model, monkeypatch):
    trainer = make_any("GRPO", make_model(), max_steps=1)
    sampled = trainer._prepare_inputs
    monkeypatch.setattr(trainer, "_prepare_inputs", lambda batch: dict(sampled(batch)))  # a copy is not counted
    with pytest.raises(IncompatibleTRLError, match="none of those sampled together"):
        trainer.train()


# ---------------------------------------------------------------------------------------------------------------------
# What the heads learn
# ---------------------------------------------------------------------------------------------------------------------


def batch(tool_mask=None):
    """Two rows: left-padded prompts of 1 and 2 tokens, completions of 4 and 2."""
    inputs = {
        "prompt_ids": torch.tensor([[0, 5], [6, 7]]),
        "prompt_mask": torch.tensor([[0, 1], [1, 1]]),
        "completion_ids": torch.tensor([[2, 3, 4, 1], [8, 1, 0, 0]]),
        "completion_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "advantages": torch.zeros(2),
    }
    return inputs if tool_mask is None else inputs | {"tool_mask": torch.tensor(tool_mask)}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("policy", [[2, 1], [8, 1]]),
        ("completion", [[2, 3, 4, 1], [8, 1]]),
        ("observation", [[3, 4], []]),
        ("all", [[2, 3, 4, 1], [7, 8, 1]]),  # the first token of a text has nothing before it
    ],
)
def test_which_tokens_are_learnt(make_any, make_model, tokens, expected):
    trainer = make_any("GRPO", make_model(), mtp_tokens=tokens)
    inputs = batch([[1, 0, 0, 1], [1, 1, 1, 1]])
    labels = trainer._token_choice(inputs).labels(**trainer._texts(inputs))
    assert [[label for label in row if label != -100] for row in labels.tolist()] == expected


def test_observations_that_nobody_marked_are_refused(make_any, make_model):
    with pytest.raises(ValueError, match="mtp_tokens='observation' and nothing in the batch was replied"):
        make_any("GRPO", make_model(), mtp_tokens="observation", max_steps=1).train()


def test_truncated_completions_are_no_targets_where_trl_masks_them(make_any, make_model):
    trainer = make_any("GRPO", make_model(), mask_truncated_completions=True, max_steps=1)
    texts, counts = generated(trainer), []
    add = trainer._add_depths
    trainer._add_depths = lambda later: counts.append(int(later.num_targets)) or add(later)
    trainer.train()
    ended = [ids for ids in texts if ids[-1] == EOS]
    assert 0 < len(ended) < len(texts)
    assert counts == [sum(map(len, ended))]


@pytest.mark.parametrize("kind", [*KINDS, "PPO"])
def test_groups_without_a_spread_of_rewards_do_not_move_the_trunk(make_any, make_model, kind):
    model, before = make_model(), make_model()
    trainer = make_any(kind, model, beta=0.0, max_steps=2, optim="sgd", learning_rate=1.0)
    generated(trainer, reward=lambda ids: 0.0)
    trainer.train()
    torch.testing.assert_close(model.trunk.state_dict(), before.trunk.state_dict(), rtol=0, atol=1e-7)
    assert not torch.equal(model.heads.layers[0].projection.weight, before.heads.layers[0].projection.weight)


def test_advantages_of_tokens_are_refused_by_rloo_where_they_would_be_broadcast(make_any, make_model):
    trainer = make_any("RLOO", make_model())
    square = batch() | {"advantages": torch.zeros(2, 2), "old_logps": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"advantages have the shape \(2, 2\), expected one for each of 2 rows"):
        trainer._token_choice(square)


# ---------------------------------------------------------------------------------------------------------------------
# The reference
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_model_in_memory(make_any, make_model, tmp_path, kind):
    make_model().save_pretrained(tmp_path / "saved")
    model = MTPModel.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        for weight in model.trunk.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    trainer = make_any(kind, model, beta=0.5, max_steps=2, learning_rate=1e-2)
    assert trainer.args.beta == trainer.beta == 0.5
    assert not any(isinstance(module, MTPModel) for module in trainer.ref_model.modules())
    frozen = {name: weight.clone() for name, weight in trainer.ref_model.state_dict().items()}
    trainer.train()
    first, second = logged(trainer, "kl")
    assert first == pytest.approx(0.0, abs=1e-6)
    assert second > 1e-4
    assert all(torch.equal(weight, frozen[name]) for name, weight in trainer.ref_model.state_dict().items())


# ---------------------------------------------------------------------------------------------------------------------
# Rewards and other input
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unscored", [None, float("nan")])
def test_completions_that_cannot_be_scored_are_left_out(make_any, make_model, kind, unscored):
    def reward(completions, **_):
        return [unscored, *[float(i % 2) for i in range(1, len(completions))]]

    trainer = make_any(kind, make_model(), extra={"reward_funcs": reward}, max_steps=1)
    advantages = []
    spied = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda rows: advantages.append(spied(rows)) or advantages[-1]
    trainer.train()
    assert advantages[0]["advantages"][0] == 0
    assert torch.isfinite(advantages[0]["advantages"]).all()
    assert math.isfinite(logged(trainer, "loss")[0])


def test_a_reward_that_is_none_a_number_or_infinite_is_said(make_any, make_model):
    with pytest.raises(TypeError, match="the reward function 'nothing' returned None, expected one number"):
        checked_reward(lambda: None, "nothing")()
    with pytest.raises(TypeError, match=r"returned 0\.5, expected one number"):
        checked_reward(lambda: 0.5, "one")()
    with pytest.raises(TypeError, match=r"returned \{0: 1\.0, 1: 0\.0\}, expected one number"):
        checked_reward(lambda: {0: 1.0, 1: 0.0}, "by_index")()  # its keys are numbers, too
    with pytest.raises(
        ValueError, match="the reward function 'big' returned inf for completion 1; rewards must be finite"
    ):
        checked_reward(lambda: [0.0, float("inf")], "big")()
    assert checked_reward(lambda: [1, None], "fine")() == [1.0, None]
    module = nn.Linear(1, 1)
    assert checked_reward(module, "model") is module

    def forgot(completions, **_):
        [len(one) for one in completions]

    with pytest.raises(TypeError, match="the reward function 'forgot' returned None"):
        make_any("GRPO", make_model(), extra={"reward_funcs": forgot}, max_steps=1).train()


def test_a_partial_function_is_a_reward_and_keeps_its_field_of_tokens(make_any, make_model):
    weighed = functools.partial(lambda factor, completions, **_: [factor * i for i in range(len(completions))], 0.5)
    trainer = make_any("GRPO", make_model(), extra={"reward_funcs": weighed}, max_steps=1)
    trainer.train()
    assert logged(trainer, "reward") == [0.5 * 3.5]
    assert checked_reward(functools.partial(functools.partial(env_reward)), "twice").token_field == "token_rewards"


def test_two_rewards_of_one_name_are_refused(make_any, make_model):
    def one(completions, **_):
        return [1.0] * len(completions)

    with pytest.raises(ValueError, match=r"several reward functions are called \['one'\].*Give each a name"):
        make_any("RLOO", make_model(), extra={"reward_funcs": [one, one]})


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickled_model_trains_as_the_one_it_is_a_copy_of(make_any, make_model, kind):
    model = make_model()
    copied = pickle.loads(pickle.dumps(model))
    for one in (model, copied):
        make_any(kind, one, max_steps=2).train()
    assert all(map(torch.equal, model.parameters(), copied.parameters()))
    assert not torch.equal(model.heads.layers[0].projection.weight, make_model().heads.layers[0].projection.weight)


def test_peft_s_own_wrapper_is_refused_with_what_to_do(make_any, make_model):
    wrapped = peft.get_peft_model(make_model(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(TypeError, match=r"would freeze the heads; put adapters into the trunk with .*add_lora"):
        check_model(wrapped)


def test_a_reward_that_raises_stops_with_its_own_error(make_any, make_model):
    def broken(completions, **_):
        raise ZeroDivisionError("in the reward")

    with pytest.raises(ZeroDivisionError, match="in the reward"):
        make_any("RLOO", make_model(), extra={"reward_funcs": broken}, max_steps=1).train()


def test_a_tokenizer_that_pads_with_its_eos_loses_no_eos(make_any, make_model, char_tokenizer):
    char_tokenizer.pad_token = char_tokenizer.eos_token
    trainer = make_any("GRPO", make_model(), max_steps=1)
    texts, counts = generated(trainer), []
    add = trainer._add_depths
    trainer._add_depths = lambda later: counts.append(int(later.num_targets)) or add(later)
    trainer.train()
    assert any(ids[-1] == EOS for ids in texts)
    assert counts == [sum(map(len, texts))]


@pytest.mark.parametrize("config_class", [MTPGRPOConfig, MTPRLOOConfig])
def test_options_that_do_not_fit_are_refused(make_config, config_class):
    for name in ("sync_ref_model", "use_vllm", "use_transformers_continuous_batching"):
        with pytest.raises(ValueError, match=f"{name}=True is not supported with MTP heads"):
            make_config(config_class, **{name: True})
    with pytest.raises(ValueError, match="mtp_num_draft=0 must be a positive number of tokens, 'auto' or None"):
        make_config(config_class, mtp_num_draft=0)
    with pytest.raises(ValueError, match=r"mtp_draft='mpt' is unknown.*mtp"):
        make_config(config_class, mtp_draft="mpt")


def test_prompts_are_asked_for(make_any, make_model):
    rows = Dataset.from_list([{"question": "1+1="}])
    with pytest.raises(ValueError, match=r"has the columns \['question'\], expected 'prompt'"):
        make_any("RLOO", make_model(), train_dataset=rows)
