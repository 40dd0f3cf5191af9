"""PPOImagination: the agent's imagination on what TRL samples; logged, resumed to the bit, refused where unfit."""

import math
from types import SimpleNamespace

import pytest
import torch

from worldmtp.agents.config import ImaginationConfig, WorldModelConfig
from worldmtp.post_training import MTPPPOConfig, PPOImagination

ONE = {"num_generations": 1}
USES = ("counterfactual", "baseline")
WORLD = WorldModelConfig(num_updates=2, batch_size_episodes=8, world_heads_learning_rate=1e-2, measure_every=2)


def settings(use, **changes):
    given = {"horizon": 2, "num_rollouts": 2, "min_batches": 1, "max_live": 3, "critic_updates": 20}
    return ImaginationConfig(use=use, **{**given, **changes})


@pytest.fixture
def make_imagining(make_any, make_model, make_config):
    """Make a trainer whose advantages are imagined, with a value range that its reward stays in."""

    def make(use, model=None, seed=3, **options):
        extra = options.pop("extra", {})
        model = model or make_model(value_range=(0.0, 1.0))
        args = make_config(MTPPPOConfig, **{"max_completion_length": 8, "gradient_accumulation_steps": 1, **options})
        imagined = PPOImagination(model, args, settings(use), WORLD, seed)
        return make_any("PPO", model, extra={"imagined_advantages": imagined, **extra}, **{**ONE, **options})

    return make


def logged(trainer, name):
    return [record[name] for record in trainer.state.log_history if name in record]


@pytest.mark.parametrize("use", USES)
def test_it_trains_and_is_logged_by_the_agents_tags(make_imagining, make_model, use):
    before = make_model(value_range=(0.0, 1.0))
    trainer = make_imagining(use, max_steps=8, num_iterations=2)
    trainer.train()
    # Four batches, whose numbers stand at the step after which each was sampled; heads have learnt from three of them.
    assert len(logged(trainer, "imagination/gate_open")) == 4
    assert set(logged(trainer, "imagination/gate_open")) <= {0.0, 1.0}
    assert len(logged(trainer, "world_model/loss")) == 3
    assert len(logged(trainer, "world_model/action_shuffle_loss_ratio")) == 2  # the first and the third
    tags = {"imagination/return_corr", "imagination/imagined_tokens"}
    tags |= {"counterfactual": {"imagination/rung_0/r2", "imagination/tail_taken_fraction", "imagination/kappa"}}.get(
        use, {"imagination/r2", "imagination/skill_h1", "imagination/weight_h0"}
    )
    for tag in tags:
        assert len(logged(trainer, tag)) == 4, tag
        assert all(math.isfinite(value) for value in logged(trainer, tag)), tag
    assert not torch.equal(trainer.model.world_heads.reward[3].weight, before.world_heads.reward[3].weight)


def test_an_open_gate_gives_tokens_of_one_answer_advantages_of_their_own(make_imagining, batches_of):
    trainer = make_imagining("counterfactual", max_steps=12, per_device_train_batch_size=16, learning_rate=1e-5)
    batches = batches_of(trainer)
    trainer.train()
    opened = logged(trainer, "imagination/gate_open")
    assert opened[0] == 0.0
    assert 1.0 in opened
    for batch, is_open in zip(batches, opened, strict=True):
        mask, values = batch["decision_mask"], batch["advantages"]
        spread = [float(row[chosen].max() - row[chosen].min()) for row, chosen in zip(values, mask, strict=True)]
        assert (max(spread) > 1e-4) == bool(is_open)


def test_while_the_gate_is_shut_a_group_is_compared_with_the_others(make_imagining, batches_of):
    """The share kappa is one half: b = m + (loo - m) / 2, of four answers to two prompts paid 1, 0, .5 and .25."""
    trainer = make_imagining(
        "counterfactual",
        num_generations=2,
        per_device_train_batch_size=4,
        max_steps=1,
        extra={"reward_funcs": lambda completions, **_: [1.0, 0.0, 0.5, 0.25]},
    )
    batches = batches_of(trainer)
    trainer.train()
    others, own = [0.25, 1.75 / 3, 1.25 / 3, 1.5 / 3], [0.0, 1.0, 0.25, 0.5]
    residuals = torch.tensor(
        [g - (m + loo) / 2 for g, m, loo in zip((1.0, 0.0, 0.5, 0.25), others, own, strict=True)], dtype=torch.float64
    )
    mask = batches[0]["decision_mask"]
    scale = ((residuals[:, None] ** 2 * mask).sum() / mask.sum()).sqrt()
    expected = torch.where(mask, (residuals / scale)[:, None], 0.0).float()
    torch.testing.assert_close(batches[0]["advantages"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("step", [3, 4])
def test_a_resumed_run_is_one_that_was_not_stopped(make_imagining, make_model, tmp_path, use, step):
    """Batches serve four steps: at step 3 one is in use, and at 4 one has been used up, and not been learnt from."""
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 7, "per_device_train_batch_size": 4}
    options |= {"num_iterations": 2, "steps_per_generation": 2}
    whole = make_imagining(use, output_dir=tmp_path / "whole", **options)
    whole.train()
    resumed = make_imagining(use, output_dir=tmp_path / "resumed", **options)
    checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
    resumed.train(resume_from_checkpoint=str(checkpoint))
    expected = whole.model.state_dict()
    assert [n for n, w in resumed.model.state_dict().items() if not torch.equal(w, expected[n])] == []
    for name in ("loss", "imagination/return_corr", "world_model/loss", "world_model/action_shuffle_loss_ratio"):
        assert logged(resumed, name) == logged(whole, name), name
    (checkpoint / "imagination.pt").unlink()
    again = make_imagining(use, output_dir=tmp_path / "again", **options)
    with pytest.raises(FileNotFoundError, match=r"imagination.pt is missing: the checkpoint's run imagined nothing"):
        again.train(resume_from_checkpoint=str(checkpoint))


def test_evaluation_neither_imagines_nor_measures(make_imagining, prompts):
    trainer = make_imagining("baseline", max_steps=1, per_device_eval_batch_size=8)
    trainer.train()
    state = trainer.imagined_advantages.batch_imagination.state_dict()
    metrics = trainer.evaluate(prompts)
    after = trainer.imagined_advantages.batch_imagination.state_dict()
    assert not [name for name in metrics if "imagination" in name]
    assert torch.equal(state["estimator"]["stack"]["moments"], after["estimator"]["stack"]["moments"])
    assert torch.equal(state["generators"]["imagination"], after["generators"]["imagination"])


def test_without_it_the_run_is_as_it_was_to_the_bit(make_any, make_model, batches_of):
    """A function that returns GAE gives PPO's own run: what is shown to it is in no batch that is trained on."""
    shown, keys, ends = [], [], []
    for hook in (None, lambda batch: shown.append(set(batch)) or batch["advantages"]):
        trainer = make_any("PPO", make_model(), **ONE, max_steps=3, extra={"imagined_advantages": hook})
        batches = batches_of(trainer)
        trainer.train()
        keys.append(set(batches[0]))
        ends.append(trainer.model.state_dict())
    assert keys[0] == keys[1] == shown[0] - {"rewards", "truncated", "group"}
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())


def test_answers_to_one_prompt_on_two_processes_are_of_one_group(make_any, make_model):
    """Three rows a process and two answers a prompt: the second process begins with the second answer to prompt 1."""
    seen = []
    hook = {"imagined_advantages": lambda batch: seen.append(batch["group"].tolist()) or batch["advantages"]}
    trainer = make_any("PPO", make_model(), num_generations=2, per_device_train_batch_size=4, extra=hook)
    nothing, batch = torch.zeros(3, 2), {"decision_mask": torch.ones(3, 2, dtype=torch.bool)}
    for process in (0, 1):
        trainer.accelerator = SimpleNamespace(process_index=process)
        trainer._imagined(batch | {"advantages": nothing}, nothing, torch.zeros(3, dtype=torch.bool))
    assert seen == [[0, 0, 1], [1, 2, 2]]


@pytest.mark.parametrize(
    ("use", "options", "message"),
    [
        ("counterfactual", {"gamma": 0.9}, r"^gamma=0\.9 with imagination=counterfactual: .* set gamma=1"),
        ("counterfactual", {"bootstrap_truncated": True}, r"^bootstrap_truncated=True with imagination=counterf"),
        ("baseline", {"top_p": 0.9}, r"top_p=0\.9 with imagination=baseline: .* leave top_p out"),
        (
            "baseline",
            {"generation_kwargs": {"top_k": 2}},
            r"generation_kwargs=\{'top_k': 2\} with imagination=baseline",
        ),
        ("search", {}, "imagination=search acts in the agent's own loop"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(make_imagining, use, options, message):
    with pytest.raises(ValueError, match=message):
        make_imagining(use, **options)


def test_a_trainer_that_does_not_fit_is_refused(make_imagining, make_model):
    trainer = make_imagining("baseline")
    imagined = trainer.imagined_advantages
    given = {"is_fsdp_enabled": False, "is_deepspeed_enabled": False}
    with pytest.raises(ValueError, match="made for another model than the trainer's"):
        imagined.check_trainer(
            SimpleNamespace(model=make_model(), accelerator=SimpleNamespace(num_processes=1), **given)
        )
    with pytest.raises(ValueError, match="imagination on 2 processes"):
        imagined.check_trainer(
            SimpleNamespace(model=trainer.model, accelerator=SimpleNamespace(num_processes=2), **given)
        )
