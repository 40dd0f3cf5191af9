"""BatchImagination: what the agent's trainer makes of the same episodes; its packing by hand; what it refuses."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from worldmtp.agents import BatchImagination, SampledTexts
from worldmtp.agents.batch_imagination import as_rollout, sampled_advantages
from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.imagination.imagined_returns import Turns
from worldmtp.agents.ppo import AdvantagePlan
from worldmtp.agents.rollout import Rollout
from worldmtp.agents.tail import TAIL
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.envs import Example, Score, TextGenVectorEnv
from worldmtp.model import MTPModel

MakeModel = Callable[..., MTPModel]
MakeRollout = Callable[..., Rollout]
WORLD = WorldModelConfig(num_updates=4, batch_size_episodes=16, world_heads_learning_rate=1e-2)
PPO = PPOConfig()


class ShareOfA:
    """Paid is the share of three letters that are "a": returns differ from the first batch on."""

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        return Example(prompt="".join(rng.choice(list("abcd"), size=int(rng.integers(1, 3)))) + "=", answer="aa")

    def score(self, example: Example, text: str, ids: np.ndarray) -> Score:
        return Score(value=text.count("a") / 3, components={}, reason="ok", exact=text == "aa")


def paying_env() -> TextGenVectorEnv:
    """16 rows; prompts of two and of three tokens."""
    tokenizer, seeds = {"kind": "char", "alphabet": "abcd="}, {"pool_size": 8, "pool_seed": 1}
    return TextGenVectorEnv(
        16, autoreset_mode="disabled", task=ShareOfA(), tokenizer=tokenizer, max_prompt=3, max_new=3, **seeds
    )


def options(use: str, **changes: Any) -> ImaginationConfig:
    given: dict[str, Any] = {"horizon": 2, "num_rollouts": 2, "min_batches": 1, "max_live": 3, "critic_updates": 30}
    return ImaginationConfig(use=use, **{**given, **changes})


def as_texts(rollout: Rollout, left: int, right: int) -> SampledTexts:
    """Episodes as TRL packs them: prompts end at one column, what follows begins behind it; ``left`` columns more."""
    rows = len(rollout)
    longest = int(rollout.prompt_length.max())
    width = left + longest + rollout.input_ids.shape[1] + right
    ids = torch.full((rows, width), 6)
    text, decides = torch.zeros(2, rows, width, dtype=torch.bool)
    logprobs, rewards = torch.zeros(2, rows, width, dtype=torch.float64)
    for row in range(rows):
        first = left + longest - int(rollout.prompt_length[row])
        length = int(rollout.attention_mask[row].sum())
        ids[row, first : first + length], text[row, first : first + length] = rollout.input_ids[row, :length], True
        for step in range(int(rollout.step_mask[row].sum())):
            place = first + int(rollout.action_index[row, step])
            decides[row, place] = True
            logprobs[row, place], rewards[row, place] = rollout.logprobs[row, step], rollout.rewards[row, step]
    return SampledTexts(ids, text, decides, logprobs, rewards, rollout.truncated.any(dim=1), rollout.group)


def untrained_loop(
    model: MTPModel, imagination: ImaginationConfig
) -> tuple[ImaginationTrainer, list[tuple[Rollout, AdvantagePlan]]]:
    """The agent's trainer, and what it gives PPO, which does nothing: the policy stays, its heads go on learning."""
    trainer = ImaginationTrainer(model, paying_env(), RolloutConfig(3, 4, 4), PPO, WORLD, imagination, seed=5)
    given: list[tuple[Rollout, AdvantagePlan]] = []

    def spied(rollout: Rollout, stats: Any, plan: AdvantagePlan, *_: Any) -> dict[str, float]:
        given.append((rollout, plan))
        return {}

    trainer.agent.update = spied
    return trainer, given


@pytest.mark.parametrize(("use", "tail"), [("counterfactual", True), ("counterfactual", False), ("baseline", True)])
def test_a_batch_has_the_advantages_that_the_agents_trainer_gives_ppo(
    use: str, tail: bool, tiny_model: MakeModel
) -> None:
    """Six batches, from shut gates to open ones; critics and heads learn between them, here and there.

    The agent's rollouts hold rewards in float32, and these texts in float64.
    """
    model = tiny_model().double()
    imagination = options(use, tail=tail, min_probability=0.15)
    trainer, given = untrained_loop(copy.deepcopy(model), imagination)
    batches = BatchImagination(model, imagination, PPO, WORLD, temperature=1.0, max_steps=3, seed=5)
    opened, rows = [], torch.arange(16)[:, None]
    for number in range(6):
        logged, _ = trainer.step()
        rollout, plan = given[-1]
        texts = as_texts(rollout, left=number % 3, right=number % 2)
        advantages, metrics = batches.imagined_advantages(texts)
        places = (torch.arange(texts.input_ids.shape[1]) + torch.zeros(16, 1).long())[texts.decision_mask]
        ours = advantages[rows.expand_as(advantages)[texts.decision_mask], places] / batches.scale
        expected = plan.advantages.clone()
        for row, step in rollout.step_mask.nonzero().tolist():  # the all-action term's sample, by hand
            ids = plan.live_ids[row, step].tolist()
            alive = plan.live_logprobs[row, step].isfinite().tolist() if ids else []
            taken = int(rollout.actions[row, step])
            at = [i for i, (token, lives) in enumerate(zip(ids, alive, strict=True)) if lives and token == taken]
            at = at or [i for i, (token, lives) in enumerate(zip(ids, alive, strict=True)) if lives and token == TAIL]
            for index in at:
                expected[row, step] += plan.live_advantages[row, step, index]
        torch.testing.assert_close(ours, expected[rollout.step_mask].double(), rtol=0, atol=1e-6)
        assert not advantages[~texts.decision_mask].any()
        for name in ("imagination/gate_open", "imagination/return_corr", "imagination/imagined_to_real_ratio"):
            assert metrics[name] == pytest.approx(logged[name], abs=1e-6), name
        learnt = batches.learn()
        assert learnt["world_model/loss"] == pytest.approx(logged["world_model/loss"], abs=1e-9)
        assert batches.learn() == {}
        opened.append(metrics["imagination/gate_open"])
        assert {name for name in metrics if "tail" in name} == {n for n in logged if "tail" in n}
    assert set(opened) == {0.0, 1.0}


def test_the_sample_has_the_expectation_of_the_all_action_term(hand_rollout: MakeRollout) -> None:
    """One state with live tokens of .5 and .3 and a tail of .2; A^ = (.2, -.1, -.35) is centred: .1 - .03 - .07.

    sum_a A^ grad pi(a) over logits z of 4 tokens, .5 .3 .1 .1: grad pi(a) / dz_j = pi_a (1[a=j] - pi_j), so
    j=0: .2 .5 (.5) - .1 .3 (-.5) - .35 .2 (-.5) = .05 + .015 + .035 = .1, which is pi_0 A_0 since A^ has mean zero.
    """
    probs = torch.tensor([0.5, 0.3, 0.1, 0.1], dtype=torch.float64)
    centred = torch.tensor([[[0.2, -0.1, -0.35]]], dtype=torch.float64)
    ids, logs = torch.tensor([[[0, 1, TAIL]]]), torch.tensor([[[0.5, 0.3, 0.2]]], dtype=torch.float64).log()
    nothing = torch.zeros(1, 1, dtype=torch.float64)
    plan = AdvantagePlan(nothing, nothing, ids, logs, centred)
    expected = torch.zeros(4, dtype=torch.float64)
    for token, prob in enumerate(probs.tolist()):
        advantage = sampled_advantages(plan, torch.tensor([[token]]))
        grad_log = torch.eye(4, dtype=torch.float64)[token] - probs
        expected += prob * float(advantage) * grad_log
    by_hand = torch.tensor([0.1, -0.03, -0.035, -0.035], dtype=torch.float64)
    torch.testing.assert_close(expected, by_hand)


def test_texts_become_the_rollout_that_they_were(hand_rollout: MakeRollout) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": [2, 3], "actions": [4, 5, 1], "rewards": [0.0, 0.5, 0.25], "end": "terminated", "group": 0},
        {"prompt": [3], "actions": [6, 2], "wrote": [[5, 5], []], "rewards": [1, 2], "end": "truncated", "group": 1},
    ]
    rollout = hand_rollout(rows, steps=4, length=5)
    found, origin = as_rollout(as_texts(rollout, left=1, right=2), max_steps=4)
    for name, value in vars(rollout).items():
        expected = value.double() if value.is_floating_point() else value
        if name == "input_ids":
            expected, got = expected[rollout.attention_mask], found.input_ids[found.attention_mask]
        else:
            got = getattr(found, name)
        assert torch.equal(got, expected), name
    # The widest prompt has two tokens, after one column more; answers begin at column 3.
    assert origin[0, :3].tolist() == [3, 4, 5]
    assert origin[1, :2].tolist() == [3, 6]


def test_texts_without_a_decision_have_no_part(tiny_model: MakeModel) -> None:
    """The last four rows were not scored: the others have what they have without them, and these have zero."""
    model = tiny_model().double()
    trainer, given = untrained_loop(copy.deepcopy(model), options("counterfactual"))
    trainer.step()
    texts = as_texts(given[0][0], 0, 0)
    scored = torch.arange(16) < 12
    unscored = {**vars(texts), "decision_mask": texts.decision_mask & scored[:, None]}
    unscored |= {name: torch.where(scored[:, None], unscored[name], 0.0) for name in ("logprobs", "rewards")}
    alone = SampledTexts(**{name: value[scored] for name, value in vars(texts).items()})
    results = []
    for each in (SampledTexts(**unscored), alone):
        batches = BatchImagination(copy.deepcopy(model), options("counterfactual"), PPO, WORLD, 1.0, 3, seed=0)
        results.append(batches.imagined_advantages(each)[0])
    torch.testing.assert_close(results[0][scored], results[1])
    assert not results[0][~scored].any()
    nobody = SampledTexts(**{**unscored, "decision_mask": torch.zeros_like(texts.decision_mask)})
    assert not batches.imagined_advantages(nobody)[0].any()


def test_learning_leaves_the_trunk_and_the_gradients_of_others_alone(tiny_model: MakeModel) -> None:
    model = tiny_model().double()
    trainer, given = untrained_loop(copy.deepcopy(model), options("counterfactual"))
    trainer.step()
    batches = BatchImagination(model, options("counterfactual"), PPO, WORLD, 1.0, 3, seed=0)
    model.train()
    batches.imagined_advantages(as_texts(given[0][0], 0, 0))
    before = copy.deepcopy(model.state_dict())
    weight = next(model.heads.parameters())
    weight.grad = torch.full_like(weight, 3.0)
    batches.learn()
    assert bool((weight.grad == 3.0).all())
    assert [name for name, value in model.named_parameters() if value.grad is not None and value is not weight] == []
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("heads.", "world_heads.")) for name in changed)
    assert model.training


def test_a_restored_one_goes_on_to_the_bit(tiny_model: MakeModel) -> None:
    trainer, given = untrained_loop(tiny_model(), options("counterfactual"))
    for _ in range(3):
        trainer.step()
    texts = [as_texts(rollout, 0, 0) for rollout, _ in given]
    model = tiny_model()
    through = BatchImagination(model, options("counterfactual"), PPO, WORLD, 1.0, 3, seed=0)
    for batch in texts[:2]:
        through.learn()
        through.imagined_advantages(batch)
    kept, state = copy.deepcopy(model), copy.deepcopy(through.state_dict())  # before the second is learnt from
    restored = BatchImagination(kept, options("counterfactual"), PPO, WORLD, 1.0, 3, seed=9)
    restored.load_state_dict(state)
    results = []
    for each in (through, restored):
        learnt = each.learn()
        results.append((learnt, *each.imagined_advantages(texts[2])))
    assert results[0][0] == results[1][0] != {}
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]


def test_a_reply_needs_the_rules_that_end_a_turn(hand_rollout: MakeRollout, tiny_model: MakeModel) -> None:
    row = {"prompt": [3], "actions": [6, 1, 2], "wrote": [[], [5], []], "rewards": [0, 0, 1], "end": "truncated"}
    texts = as_texts(hand_rollout([row, row], steps=3, length=6), 0, 0)
    given = (options("baseline"), PPO, WORLD, 1.0, 3, 0)
    with pytest.raises(ValueError, match=r"between the policy's, .* give turns=Turns\(eos_id, max_turn\)"):
        BatchImagination(tiny_model(), *given).imagined_advantages(texts)
    _, metrics = BatchImagination(tiny_model(), *given, turns=Turns(1)).imagined_advantages(texts)
    assert metrics["imagination/turn_border_fraction"] > 0


@pytest.mark.parametrize(
    ("imagination", "ppo", "message"),
    [
        (options("search"), PPO, "imagination=search acts in the agent's own loop; set imagination=counterfactual or"),
        (options("off"), PPO, "imagination=off acts in"),
        (options("counterfactual", completions="trunk"), PPO, "set imagination.completions=none"),
        (options("counterfactual", gradient_norm_every=2), PPO, "gradient_norm_every=2 measures the agent's own"),
        (options("baseline", horizon=9), PPO, "horizon=9"),
        (options("counterfactual"), PPOConfig(gamma=0.9), "gamma=0.9 with"),
    ],
)
def test_what_a_batch_cannot_have_is_refused(
    imagination: ImaginationConfig, ppo: PPOConfig, message: str, tiny_model: MakeModel
) -> None:
    with pytest.raises(ValueError, match=message):
        BatchImagination(tiny_model(), imagination, ppo, WORLD, 1.0, 3, seed=0)


def test_texts_that_do_not_fit_are_refused(hand_rollout: MakeRollout) -> None:
    row = {"prompt": [3], "actions": [6, 1, 2], "rewards": [0, 0, 1], "end": "terminated"}
    texts = as_texts(hand_rollout([row], steps=3, length=4), 0, 0)
    with pytest.raises(ValueError, match=r"texts have \[3\] tokens of the policy, expected 1 to max_steps=2"):
        as_rollout(texts, 2)
    texts.rewards[0, 0] = 1.0
    with pytest.raises(ValueError, match="rewards stand at tokens that the policy did not choose"):
        as_rollout(texts, 3)
