"""The loop with its model on a CUDA device: nothing is left on the host by mistake, and it resumes from the host."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.evaluation import Evaluator, depth_predictions
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.checkpoint import load_checkpoint, save_checkpoint
from worldmtp.envs import TextGenVectorEnv
from worldmtp.model import MTPModel

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("backend", ["mtp", "oracle", "identity", "shuffled"])
@pytest.mark.parametrize("use", ["off", "counterfactual", "baseline"])
def test_a_run_on_the_device(
    use: str,
    backend: str,
    text_env: Callable[[int], TextGenVectorEnv],
    tiny_model: Callable[..., MTPModel],
    tmp_path: Path,
) -> None:
    def make() -> ImaginationTrainer:
        model = tiny_model()
        torch.nn.Module.to(model, "cuda")
        return ImaginationTrainer(
            model,
            text_env(16),
            RolloutConfig(num_iterations=4, num_prompts=4, group_size=4),
            PPOConfig(),
            WorldModelConfig(backend=backend, num_updates=2, batch_size_episodes=8),
            ImaginationConfig(use=use, horizon=2, num_rollouts=2, min_batches=1, max_live=3),
            seed=0,
        )

    first, second = make(), make()
    for _ in range(2):
        metrics, rollout = first.step()
    assert rollout.input_ids.is_cuda
    assert all(isinstance(value, float) for value in metrics.values())
    path = save_checkpoint(tmp_path, 2, {"trainer": first.state_dict()})
    second.load_state_dict(load_checkpoint(path)["trainer"])
    metrics, _ = second.step()
    assert metrics["env/episodes"] == 48.0


def test_evaluation_on_the_device(
    text_env: Callable[[int], TextGenVectorEnv], tiny_model: Callable[..., MTPModel]
) -> None:
    model, env = tiny_model(), text_env(4)
    torch.nn.Module.to(model, "cuda")
    evaluation = Evaluator(env, env.examples("heldout", 4, seed=0), 1.0, 0).run(model)
    assert depth_predictions(model, evaluation.sampled, 1.0).logprobs.is_cuda
