"""Models of replies for an environment: how large they are, and one out of a saved ``EpisodeImagination``."""

from typing import Any

import torch

from worldmtp.agents.config import WorldModelConfig
from worldmtp.dynamics.replies import ReplyModel
from worldmtp.dynamics.reply_config import ReplyModelConfig
from worldmtp.dynamics.reply_learning import ReplyModels
from worldmtp.dynamics.reply_network import ReplySizes
from worldmtp.envs import TextVectorEnv
from worldmtp.envs.imagined_world import turn_limit
from worldmtp.model import MTPModel


def reply_sizes(env: TextVectorEnv, model: MTPModel, replies: ReplyModelConfig) -> ReplySizes:
    """Return what a model of this environment's replies has room for, with the reward bins of ``model``."""
    dataset = env.dataset
    return ReplySizes(
        vocab_size=env.tokenizer.vocab_size,
        opening=dataset.max_prompt,
        said=min(turn_limit(env) or dataset.max_steps, dataset.max_steps),
        reply=replies.max_reply,
        num_turns=dataset.max_steps,
        num_reward_bins=len(model.world_heads.reward_bins),
    )


def saved_replies(
    state: dict[str, Any], env: TextVectorEnv, model: MTPModel, config: WorldModelConfig
) -> tuple[ReplyModel, int]:
    """Return the model of replies that ``EpisodeImagination.state_dict`` holds, and the most turns there have been.

    Raises:
        ValueError: it has learnt from no reply; or replies of another environment.
    """
    if not int(state["models"]["num_batches"]):
        raise ValueError(
            f"the run has learnt no model of replies: world_model.backend={config.backend}, and no whole turn was "
            "heard; train it with imagination=episodes and world_model=mtp, or plan in the real world."
        )
    sizes, bins = reply_sizes(env, model, config.replies), model.world_heads.reward_bins.cpu()
    models = ReplyModels(sizes, config.replies, bins, torch.Generator(), blind=config.backend == "identity")
    try:
        models.load_state_dict(state["models"])
    except RuntimeError as error:
        raise ValueError(f"the run's model of replies is of an environment of other sizes: {error}") from error
    return models.best.model.eval().to(model.device), int(state["seen"]["most_turns"])
