"""Agents: rollout, PPO, imagination. Names are loaded on first use; the configs alone cost no torch."""

from typing import TYPE_CHECKING

from worldmtp.lazy import lazy_exports

if TYPE_CHECKING:
    from worldmtp.agents.batch_imagination import BatchImagination as BatchImagination
    from worldmtp.agents.batch_imagination import SampledTexts as SampledTexts
    from worldmtp.agents.config import ImaginationConfig as ImaginationConfig
    from worldmtp.agents.config import PPOConfig as PPOConfig
    from worldmtp.agents.config import RolloutConfig as RolloutConfig
    from worldmtp.agents.config import WorldModelConfig as WorldModelConfig
    from worldmtp.agents.evaluation import Evaluation as Evaluation
    from worldmtp.agents.evaluation import Evaluator as Evaluator
    from worldmtp.agents.policies import LatentPolicy as LatentPolicy
    from worldmtp.agents.policies import TrunkPolicy as TrunkPolicy
    from worldmtp.agents.ppo import PPOAgent as PPOAgent
    from worldmtp.agents.rollout import collect_rollout as collect_rollout
    from worldmtp.agents.trainer import ImaginationTrainer as ImaginationTrainer

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "batch_imagination": "BatchImagination SampledTexts",
        "config": "ImaginationConfig PPOConfig RolloutConfig WorldModelConfig",
        "evaluation": "Evaluation Evaluator",
        "policies": "LatentPolicy TrunkPolicy",
        "ppo": "PPOAgent",
        "rollout": "collect_rollout",
        "trainer": "ImaginationTrainer",
    },
)
