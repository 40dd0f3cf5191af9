"""MTPPPOTrainer: it runs, it is the agent's PPO to the sixth decimal, its value head learns, and what it refuses."""

import copy
import math

import pytest
import torch

from worldmtp import MTPModel
from worldmtp.agents.advantages import PlainAdvantages
from worldmtp.agents.config import PPOConfig
from worldmtp.agents.ppo import PPOAgent, policy_stats
from worldmtp.agents.rollout import Rollout
from worldmtp.post_training import MTPPPOConfig

EOS = 1
ONE = {"num_generations": 1}


def logged(trainer, name):
    return [record[name] for record in trainer.state.log_history if name in record]


# ---------------------------------------------------------------------------------------------------------------------
# It runs
# ---------------------------------------------------------------------------------------------------------------------


def test_one_completion_a_prompt_with_epochs_and_minibatches(batches_of, make_any, make_model):
    options = {"num_iterations": 2, "steps_per_generation": 2, "max_steps": 8, "beta": 0.1, "entropy_coef": 0.01}
    trainer = make_any("PPO", make_model(), **ONE, **options)
    batches = batches_of(trainer)
    trainer.train()
    assert trainer.args.num_generations == trainer.num_generations == 1
    assert len(batches) == 2  # 8 steps: two epochs of two minibatches each
    assert all(batch["advantages"].shape == batch["completion_ids"].shape for batch in batches)
    for name in ("policy_loss", "value_loss", "clip_fraction", "approx_kl", "ratio_max", "explained_variance"):
        assert all(math.isfinite(value) for value in logged(trainer, f"ppo/{name}")), name
    ratios = logged(trainer, "ppo/ratio_max")
    assert len(ratios) == 8
    assert ratios[0] == ratios[4] == pytest.approx(1.0, abs=1e-5)  # nothing has been trained on the batch
    assert min(ratios[1:4]) > 1.0001
    assert logged(trainer, "kl")[0] == pytest.approx(0.0, abs=1e-6)


def test_one_trunk_forward_with_gradients_a_micro_batch_and_no_head_in_the_others(make_any, make_model):
    model, passes, heads = make_model(), [], []
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_iterations": 2, "max_steps": 2}
    trainer = make_any("PPO", model, **ONE, **options)
    run, read = trainer.mtp_forward._run, trainer._read_values
    trainer.mtp_forward._run = lambda *given: heads.append(torch.is_grad_enabled()) or run(*given)
    trainer.mtp_forward.reader = lambda *given: passes.append(torch.is_grad_enabled()) or read(*given)
    trunk = []
    model.base_model.register_forward_hook(lambda *_: trunk.append(torch.is_grad_enabled()))
    trainer.train()
    assert passes.count(True) == 4  # two epochs of two micro-batches
    assert passes.count(False) == 2  # the policy that has sampled, in chunks of a micro-batch
    assert trunk.count(True) == 4
    assert heads == [True] * 4


def test_the_value_head_learns_and_is_saved(make_any, make_model, tmp_path):
    model, before = make_model(), make_model()
    trainer = make_any("PPO", model, **ONE, max_steps=2)
    trainer.train()
    moved = model.world_heads.value[3].weight
    assert not torch.equal(moved, before.world_heads.value[3].weight)
    assert torch.equal(model.world_heads.reward[3].weight, before.world_heads.reward[3].weight)
    trainer.save_model(str(tmp_path / "saved"))
    assert torch.equal(MTPModel.from_pretrained(tmp_path / "saved").world_heads.value[3].weight, moved)


@pytest.mark.parametrize("detached", [True, False])
def test_the_values_loss_moves_the_trunk_where_it_may(make_any, make_model, detached):
    model, before = make_model(), make_model()
    torch.nn.init.normal_(model.world_heads.value[3].weight, generator=torch.Generator().manual_seed(0))
    trainer = make_any("PPO", model, **ONE, max_steps=1, detach_value=detached)
    trainer.imagined_advantages = lambda batch: torch.zeros_like(batch["advantages"])
    trainer.train()
    same = torch.equal(model.trunk.model.layers[0].mlp.up_proj.weight, before.trunk.model.layers[0].mlp.up_proj.weight)
    assert same == detached


def test_evaluation_samples_and_measures(make_any, make_model, prompts):
    trainer = make_any("PPO", make_model(), **ONE, eval_dataset=prompts, per_device_eval_batch_size=8)
    metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_loss"])
    assert metrics["eval_ppo/ratio_max"] == pytest.approx(1.0, abs=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# It is the agent's
# ---------------------------------------------------------------------------------------------------------------------


def as_rollout(batch, returns, truncated):
    """A batch of TRL's, left-padded prompts and all, as the agent's rollout: texts begin at column 0."""
    rows = []
    for row in range(len(batch["completion_ids"])):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist()
        answer = batch["completion_ids"][row][batch["completion_mask"][row].bool()].tolist()
        rows.append((prompt, answer))
    length, steps = max(len(p) + len(a) for p, a in rows), max(len(a) for _, a in rows)
    number = len(rows)
    ids, text = torch.zeros(number, length, dtype=torch.long), torch.zeros(number, length, dtype=torch.bool)
    places, actions = torch.zeros(number, steps, dtype=torch.long), torch.zeros(number, steps, dtype=torch.long)
    mask, last = torch.zeros(number, steps, dtype=torch.bool), torch.zeros(number, steps, dtype=torch.bool)
    logprobs, rewards = torch.zeros(2, number, steps, dtype=batch["values"].dtype)
    for row, (prompt, answer) in enumerate(rows):
        whole, count = [*prompt, *answer], len(answer)
        ids[row, : len(whole)], text[row, : len(whole)] = torch.tensor(whole), True
        places[row, :count] = torch.arange(len(prompt), len(whole))
        actions[row, :count], mask[row, :count], last[row, count - 1] = torch.tensor(answer), True, True
        logprobs[row, :count] = batch["old_per_token_logps"][row, :count]
        rewards[row, count - 1] = returns[row]
    cut = torch.tensor(truncated)[:, None]
    return Rollout(
        input_ids=ids,
        attention_mask=text,
        prompt_length=torch.tensor([len(prompt) for prompt, _ in rows]),
        action_index=places,
        actions=actions,
        step_mask=mask,
        logprobs=logprobs,
        rewards=rewards,
        terminated=last & ~cut,
        truncated=last & cut,
        group=torch.arange(number),
        exact=torch.zeros(number, dtype=torch.bool),
    )


@pytest.mark.parametrize("bootstraps", [False, True])
def test_one_batch_gives_the_agents_advantages_losses_and_gradients(batches_of, make_any, make_model, bootstraps):
    model = make_model(value_range=(0.0, 1.0))
    source = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(model.world_heads.value[3].weight, std=0.3, generator=source)
    model.double()
    scores = [0.1 * i for i in range(8)]
    options = {"beta": 0.1, "entropy_coef": 0.01, "gamma": 0.9, "gae_lambda": 0.8, "bootstrap_truncated": bootstraps}
    trainer = make_any(
        "PPO",
        model,
        **ONE,
        **options,
        temperature=0.7,
        max_steps=1,
        detach_value=False,
        mtp_objective={"coef": {"start": 0}},
        extra={"reward_funcs": lambda completions, **_: scores},
    )
    with torch.no_grad():  # so that the policy is not its reference
        for weight in model.trunk.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=source))
    acted = copy.deepcopy(model)
    vars(acted).pop("forward", None)
    vars(acted).pop("generate", None)
    batches, gradients = batches_of(trainer), {}
    clip = trainer._clip_grad_norm
    trainer._clip_grad_norm = lambda given: (
        gradients.update({n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}),
        clip(given),
    )[1]
    trainer.train()
    (batch,) = batches
    ends = [ids[mask.bool()][-1] for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)]
    truncated = [int(end) != EOS for end in ends]
    assert 0 < sum(truncated) < len(truncated)

    rollout = as_rollout(batch, scores, truncated)
    config = PPOConfig(
        gamma=0.9, gae_lambda=0.8, kl_coef=0.1, ent_coef=0.01, bootstrap_truncated=bootstraps, detach_value=False
    )
    agent = PPOAgent(acted.eval(), config, temperature=0.7)
    stats = policy_stats(acted, trainer.ref_model, rollout, temperature=0.7)
    plan, _ = PlainAdvantages(config).estimate(rollout, stats)
    steps, close = rollout.actions.shape[1], {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(batch["advantages"][:, :steps], plan.advantages, **close)
    torch.testing.assert_close(batch["value_targets"][:, :steps], plan.value_targets, **close)
    mask = rollout.step_mask
    torch.testing.assert_close(batch["values"][:, :steps][mask], stats.values[:, :-1][mask], rtol=0, atol=1e-7)
    # TRL's fused head is float32 in all it returns.
    references = batch["ref_per_token_logps"][:, :steps][mask].double()
    torch.testing.assert_close(references, stats.ref_logprobs[mask], **close)
    loss, terms = agent._loss(rollout, stats.ref_logprobs, plan, rollout, has_tail=False)
    loss.backward()
    assert logged(trainer, "loss")[0] == pytest.approx(loss.item(), abs=1e-6)
    for ours, theirs in {"ppo/policy_loss": "policy", "ppo/value_loss": "value", "kl": "kl_reference"}.items():
        assert logged(trainer, ours)[0] == pytest.approx(terms[f"losses/{theirs}"].item(), abs=1e-6), ours
    assert logged(trainer, "entropy")[0] == pytest.approx(terms["losses/entropy"].item(), abs=1e-6)
    theirs = {name: weight.grad for name, weight in acted.named_parameters() if weight.grad is not None}
    assert theirs.keys() <= gradients.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(gradients[name], gradient, **close)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------------------


def test_a_completion_that_cannot_be_scored_teaches_nothing(batches_of, make_any, make_model):
    def reward(completions, **_):
        return [None, math.nan, *[1.0] * (len(completions) - 2)]

    trainer = make_any("PPO", make_model(), **ONE, max_steps=1, extra={"reward_funcs": reward})
    batches = batches_of(trainer)
    trainer.train()
    assert not batches[0]["decision_mask"][:2].any()
    assert batches[0]["decision_mask"][2:].any(dim=1).all()
    assert math.isfinite(logged(trainer, "loss")[0])


def test_returns_that_the_value_head_has_no_bins_for_are_said(make_any, make_model):
    given = {"reward_funcs": lambda completions, **_: [5.0] * len(completions)}
    trainer = make_any("PPO", make_model(value_range=(0.0, 1.0)), **ONE, max_steps=2, extra=given)
    with pytest.warns(UserWarning, match=r"returns from 5 to 5 are outside the value head's bins, -1 to 1") as caught:
        trainer.train()
    assert len([one for one in caught if "bins" in str(one.message)]) == 1
    assert logged(trainer, "ppo/returns_outside_bins") == [1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.5}, r"gamma=1\.5 must be in \[0, 1\]"),
        ({"gae_lambda": -0.1}, r"gae_lambda=-0\.1 must be in"),
        ({"value_clip": 0.0}, r"value_clip=0\.0 must be positive"),
        ({"vf_coef": -1.0}, r"vf_coef=-1\.0 must be finite and not negative"),
        ({"value_loss": "mse"}, "value_loss='mse' is unknown"),
        ({"loss_type": "grpo"}, "loss_type='grpo' is an option of GRPO that PPO has no use for"),
        ({"mask_truncated_completions": True}, "bootstrap_truncated says how they go on"),
        ({"per_device_train_batch_size": 1}, "a sampled batch of one completion"),
    ],
)
def test_options_that_do_not_fit_are_refused(make_config, options, message):
    with pytest.raises(ValueError, match=message):
        make_config(MTPPPOConfig, **{"gradient_accumulation_steps": 1, **options})


def test_groups_are_allowed(make_config):
    assert make_config(MTPPPOConfig).num_generations == 1
    assert make_config(MTPPPOConfig, num_generations=4).num_generations == 4
    odd = make_config(MTPPPOConfig, per_device_train_batch_size=3)  # what TRL is shown divides it
    assert (odd.num_generations, odd.generation_batch_size) == (1, 3)


def test_fewer_prompts_than_a_batch_are_refused_where_trl_would_make_no_step(make_any, make_model):
    with pytest.raises(ValueError, match="train_dataset has 16 prompts and a sampled batch 32"):
        make_any("PPO", make_model(), **ONE, per_device_train_batch_size=16, steps_per_generation=2)
