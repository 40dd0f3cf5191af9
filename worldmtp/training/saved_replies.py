"""The model of replies that a run has learnt, read from its newest checkpoint to plan with."""

from pathlib import Path

from worldmtp.agents.imagination.reply_models import saved_replies
from worldmtp.dynamics.conversations import ForeseenReplies
from worldmtp.envs import TextVectorEnv
from worldmtp.model import MTPModel
from worldmtp.training.reinforce import load_last
from worldmtp.training.run_dir import read_config


def run_replies(run_dir: Path, env: TextVectorEnv, model: MTPModel) -> ForeseenReplies:
    """Return the replies that a run foresees, for rows of its environment and its model.

    Raises:
        ValueError: the run has no model of replies, or one of another environment.
        CheckpointError: its newest checkpoint cannot be read.
    """
    config = read_config(run_dir)
    last = load_last(run_dir)
    trainer = {} if last is None else last.trainer
    state = trainer.get("episodes") or trainer.get("estimator", {}).get("replies")
    if state is None:
        raise ValueError(
            f"{run_dir} has no model of replies: imagination={config.imagination.use}, and what learns one is "
            "imagination=episodes, or imagination=search with imagination.search.through_replies=true. Train such a "
            "run, or plan in the real world (--dynamics world)."
        )
    return ForeseenReplies(*saved_replies(state, env, model, config.world_model))
