"""Agents: rollout, PPO, imagination. Names are loaded on first use; the configs alone cost no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
    from worldmtp.agents.evaluation import Evaluation, Evaluator
    from worldmtp.agents.policies import LatentPolicy, TrunkPolicy
    from worldmtp.agents.ppo import PPOAgent
    from worldmtp.agents.rollout import collect_rollout
    from worldmtp.agents.trainer import ImaginationTrainer
    from worldmtp.agents.trl_rollout import TextGenRollout, env_reward

__all__ = [
    "Evaluation",
    "Evaluator",
    "ImaginationConfig",
    "ImaginationTrainer",
    "LatentPolicy",
    "PPOAgent",
    "PPOConfig",
    "RolloutConfig",
    "TextGenRollout",
    "TrunkPolicy",
    "WorldModelConfig",
    "collect_rollout",
    "env_reward",
]

_MODULE_OF = {
    "Evaluation": "evaluation",
    "Evaluator": "evaluation",
    "ImaginationConfig": "config",
    "ImaginationTrainer": "trainer",
    "LatentPolicy": "policies",
    "PPOAgent": "ppo",
    "PPOConfig": "config",
    "RolloutConfig": "config",
    "TextGenRollout": "trl_rollout",
    "TrunkPolicy": "policies",
    "WorldModelConfig": "config",
    "collect_rollout": "rollout",
    "env_reward": "trl_rollout",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}.")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
