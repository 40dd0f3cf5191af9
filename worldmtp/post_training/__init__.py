"""Post-training on TRL: trainers with MTP heads, and environments as TRL's rewards and rollouts.

The only room that imports trl. Names are loaded on first use, so importing the package costs neither torch nor trl. The
first use of a trainer checks that the installed TRL still has the seams it is built on.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from worldmtp.lazy import lazy_exports

if TYPE_CHECKING:
    from worldmtp.post_training.compat import check_seams as check_seams
    from worldmtp.post_training.demonstrations import build_demonstrations as build_demonstrations
    from worldmtp.post_training.dpo import MTPDPOConfig as MTPDPOConfig
    from worldmtp.post_training.dpo import MTPDPOTrainer as MTPDPOTrainer
    from worldmtp.post_training.grpo import MTPGRPOConfig as MTPGRPOConfig
    from worldmtp.post_training.grpo import MTPGRPOTrainer as MTPGRPOTrainer
    from worldmtp.post_training.imagined import PPOImagination as PPOImagination
    from worldmtp.post_training.kto import MTPKTOConfig as MTPKTOConfig
    from worldmtp.post_training.kto import MTPKTOTrainer as MTPKTOTrainer
    from worldmtp.post_training.metrics import MetricWriterCallback as MetricWriterCallback
    from worldmtp.post_training.ppo import MTPPPOTrainer as MTPPPOTrainer
    from worldmtp.post_training.ppo_config import MTPPPOConfig as MTPPPOConfig
    from worldmtp.post_training.reward import TextGenReward as TextGenReward
    from worldmtp.post_training.rloo import MTPRLOOConfig as MTPRLOOConfig
    from worldmtp.post_training.rloo import MTPRLOOTrainer as MTPRLOOTrainer
    from worldmtp.post_training.rollout import TextGenRollout as TextGenRollout
    from worldmtp.post_training.rollout import env_reward as env_reward
    from worldmtp.post_training.sft import MTPSFTConfig as MTPSFTConfig
    from worldmtp.post_training.sft import MTPSFTTrainer as MTPSFTTrainer
    from worldmtp.post_training.tools import env_factory as env_factory

_load, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "compat": "check_seams",
        "demonstrations": "build_demonstrations",
        "dpo": "MTPDPOConfig MTPDPOTrainer",
        "grpo": "MTPGRPOConfig MTPGRPOTrainer",
        "rloo": "MTPRLOOConfig MTPRLOOTrainer",
        "imagined": "PPOImagination",
        "kto": "MTPKTOConfig MTPKTOTrainer",
        "metrics": "MetricWriterCallback",
        "ppo": "MTPPPOTrainer",
        "ppo_config": "MTPPPOConfig",
        "reward": "TextGenReward",
        "rollout": "TextGenRollout env_reward",
        "sft": "MTPSFTConfig MTPSFTTrainer",
        "tools": "env_factory",
    },
)


def __getattr__(name: str) -> object:
    if name.startswith("MTP") and name in __all__:  # before the import, which would fail without saying why
        compat = import_module(f"{__name__}.compat")
        compat.check_seams(compat.trainer_seams(name[3:].removesuffix("Config").removesuffix("Trainer") + "Trainer"))
    return _load(name)
