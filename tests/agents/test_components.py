"""Components of scores are logged by name: the rewards of a rubric in training and in evaluation."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.evaluation import Evaluator
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.envs import Example, Rubric, TextGenVectorEnv, exact_match
from worldmtp.envs.tasks.function import FunctionTask
from worldmtp.model import MTPModel
from worldmtp.tracking.tags import TAGS


def letters(rng) -> Example:  # type: ignore[no-untyped-def]
    word = "".join(rng.choice(list("abcd"), size=2))
    return Example(prompt=f"{word}=", answer=word[0])


def length(example: Example, text: str) -> float:
    return float(len(text))


def rubric_env(num_envs: int) -> TextGenVectorEnv:
    return TextGenVectorEnv(
        num_envs,
        task=FunctionTask(letters, Rubric([("right", exact_match), ("length", length, 0.0)])),
        tokenizer={"kind": "char", "alphabet": "abcd="},
        max_prompt=3,
        max_new=3,
        pool_size=8,
        heldout_fraction=0.25,
    )


def test_a_rollout_logs_the_means_of_its_own_answers(tiny_model: Callable[..., MTPModel]) -> None:
    env = rubric_env(16)
    configs = RolloutConfig(num_iterations=2, num_prompts=4, group_size=4), PPOConfig(learning_rate=1e-3)
    trainer = ImaginationTrainer(tiny_model(), env, *configs, WorldModelConfig(), ImaginationConfig(use="off"), 0)
    for _ in range(2):  # the second iteration's means are not those of both
        metrics, rollout = trainer.step()
        logged = {tag: value for tag, value in metrics.items() if tag.startswith("rollout/components/")}
        for tag in logged:
            TAGS.check(tag, "scalar")
        written = rollout.step_mask & (rollout.actions != env.tokenizer.eos_id)
        assert logged == {
            "rollout/components/length": pytest.approx(float(written.sum()) / 16),
            "rollout/components/right": pytest.approx(float(rollout.exact.float().mean())),
        }


def test_an_evaluation_logs_the_means_of_its_greedy_answers(tiny_model: Callable[..., MTPModel]) -> None:
    env = rubric_env(4)
    evaluation = Evaluator(env, env.examples("heldout", 4, seed=0), temperature=3.0, seed=0).run(tiny_model())
    greedy = evaluation.greedy
    written = greedy.step_mask & (greedy.actions != env.tokenizer.eos_id)
    assert not torch.equal(greedy.actions, evaluation.sampled.actions)
    logged = {tag: value for tag, value in evaluation.metrics().items() if tag.startswith("eval/components/")}
    for tag in logged:
        TAGS.check(tag, "scalar")
    assert logged == {
        "eval/components/length": pytest.approx(float(written.sum()) / 4),
        "eval/components/right": pytest.approx(float(greedy.exact.float().mean())),
    }
    assert "eval/components/length" not in replace(evaluation, components={}).metrics()
