"""Held-out evaluation: the same prompts every time, and nothing left behind."""

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch

from worldmtp.agents.evaluation import Evaluation, Evaluator
from worldmtp.agents.rollout import Rollout
from worldmtp.envs import TextGenVectorEnv
from worldmtp.model import MTPModel

MakeEnv = Callable[[int], TextGenVectorEnv]
MakeModel = Callable[..., MTPModel]


def make_evaluator(text_env: MakeEnv, seed: int = 0) -> Evaluator:
    env = text_env(4)
    examples = env.examples("heldout", 4, seed=0)
    return Evaluator(env, examples, 1.0, seed)


def test_evaluating_twice_gives_the_same_and_in_the_same_order(text_env: MakeEnv, tiny_model: MakeModel) -> None:
    model, evaluator = tiny_model(), make_evaluator(text_env)
    first, second = evaluator.run(model), evaluator.run(model)
    for field in fields(Rollout):
        if field.name == "group":  # numbered on by the environment
            continue
        assert torch.equal(getattr(first.greedy, field.name), getattr(second.greedy, field.name))
        assert torch.equal(getattr(first.sampled, field.name), getattr(second.sampled, field.name))
    prompts = [evaluator._env.tokenizer.encode(example.prompt) for example in evaluator.examples]
    assert first.greedy.input_ids[:, :3].tolist() == prompts
    assert first.sampled.input_ids[:, :3].tolist() == prompts
    other = make_evaluator(text_env, seed=5).run(model)
    assert torch.equal(other.greedy.actions, first.greedy.actions)
    assert not torch.equal(other.sampled.actions, first.sampled.actions)


@torch.no_grad()
def test_greedy_answers_are_the_likeliest_tokens(text_env: MakeEnv, tiny_model: MakeModel) -> None:
    model = tiny_model()
    greedy = make_evaluator(text_env).run(model).greedy
    for b, t in torch.nonzero(greedy.step_mask).tolist():
        logits = model.trunk(input_ids=greedy.input_ids[b : b + 1, : greedy.action_index[b, t]]).logits[0, -1]
        assert int(logits.argmax()) == int(greedy.actions[b, t])


def test_metrics_by_hand(hand_rollout: Callable[..., Rollout]) -> None:
    rows = [
        {"prompt": [2], "actions": [3, 1], "rewards": [0.0, 1.0], "end": "terminated"},
        {"prompt": [2], "actions": [3, 4, 5], "rewards": [0.0, 0.0, 0.25], "end": "truncated"},
    ]
    greedy = hand_rollout(rows, steps=3, length=4)
    greedy.exact[0] = True
    sampled = hand_rollout(rows[1:] * 2, steps=3, length=4)
    assert Evaluation(greedy, sampled).metrics() == {
        "eval/exact": 0.5,
        "eval/exact_sampled": 0.0,
        "eval/score": 0.625,
        "eval/score_sampled": 0.25,
        "eval/length_mean": 2.5,
        "eval/truncated_fraction": 0.5,
    }


def test_rows_and_prompts_must_agree(text_env: MakeEnv) -> None:
    env = text_env(3)
    with pytest.raises(ValueError, match="the environment has 3 rows for 2 prompts; make one a prompt"):
        Evaluator(env, env.examples("heldout", 2, seed=0), 1.0, 0)
