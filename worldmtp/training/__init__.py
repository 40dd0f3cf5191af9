"""Training runs, from a config to a report: ``run(TrainConfig(...))`` and ``open_run(directory)``.

``fresh_trainer(config)`` is the trainer of a config alone, to step by hand.

Names are loaded on first use; the configs alone cost no torch.
"""

from typing import TYPE_CHECKING

from worldmtp.lazy import lazy_exports

if TYPE_CHECKING:
    from worldmtp.training.config import AgentConfig as AgentConfig
    from worldmtp.training.config import CheckpointConfig as CheckpointConfig
    from worldmtp.training.config import EnvConfig as EnvConfig
    from worldmtp.training.config import EvalConfig as EvalConfig
    from worldmtp.training.config import HeadSpecConfig as HeadSpecConfig
    from worldmtp.training.config import LoggerConfig as LoggerConfig
    from worldmtp.training.config import ModelConfig as ModelConfig
    from worldmtp.training.config import PostTrainingConfig as PostTrainingConfig
    from worldmtp.training.config import PostTrainingHeadsConfig as PostTrainingHeadsConfig
    from worldmtp.training.config import ProfileConfig as ProfileConfig
    from worldmtp.training.config import SFTStageConfig as SFTStageConfig
    from worldmtp.training.config import TrainConfig as TrainConfig
    from worldmtp.training.run_dir import RunResult as RunResult
    from worldmtp.training.runs import OpenedRun as OpenedRun
    from worldmtp.training.runs import open_run as open_run
    from worldmtp.training.runs import run as run
    from worldmtp.training.trainers import FreshTrainer as FreshTrainer
    from worldmtp.training.trainers import fresh_trainer as fresh_trainer
    from worldmtp.training.trainers import make_trainer as make_trainer

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "config": (
            "AgentConfig CheckpointConfig EnvConfig EvalConfig HeadSpecConfig LoggerConfig ModelConfig "
            "PostTrainingConfig PostTrainingHeadsConfig ProfileConfig SFTStageConfig TrainConfig"
        ),
        "run_dir": "RunResult",
        "runs": "OpenedRun open_run run",
        "trainers": "FreshTrainer fresh_trainer make_trainer",
    },
)
