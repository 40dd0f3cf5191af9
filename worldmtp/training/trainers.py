"""The trainer of a config, to step by hand: what a run's reinforcement does, without the run around it.

    fresh = fresh_trainer(config)
    metrics, episodes = fresh.trainer.step()

Left out: the warm start, checkpoints and evaluations, which are ``Pipeline``'s.
"""

from typing import NamedTuple

from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.envs import TextVectorEnv
from worldmtp.model import MTPModel
from worldmtp.random import stream_seed
from worldmtp.training.acting import search_of
from worldmtp.training.config import TrainConfig
from worldmtp.training.imports import import_user_modules
from worldmtp.training.make import make_env, make_model, on_device
from worldmtp.training.run_prompts import RunPrompts, choose_pool, draw_run_prompts, rows_of_run


class FreshTrainer(NamedTuple):
    """A trainer before its first iteration, and what it was made of; the pools of ``env`` are the run's."""

    trainer: ImaginationTrainer
    model: MTPModel
    env: TextVectorEnv
    prompts: RunPrompts


def make_trainer(config: TrainConfig, model: MTPModel, env: TextVectorEnv, prompts: RunPrompts) -> ImaginationTrainer:
    """Return what reinforces ``model`` in the rows of ``env``, whose pools have been chosen for ``prompts``.

    Its draws are those of the config's seed, and the further rows that it makes ask from the same pools.

    Raises:
        TypeError, ValueError: as ``ImaginationTrainer``.
    """
    return ImaginationTrainer(
        model,
        env,
        config.agent.rollout,
        config.agent.ppo,
        config.world_model,
        config.imagination,
        stream_seed(config.seed, "reinforcement"),
        lambda num_rows: rows_of_run(num_rows, prompts, config),
        search_of(config) if config.agent.rollout.act == "search" else None,
    )


def fresh_trainer(config: TrainConfig) -> FreshTrainer:
    """Return a trainer with its model, environment and prompts, all of the config and its seed.

    Raises:
        TypeError, ValueError: as ``ImaginationTrainer``; or the config asks for a warm start, which is not made here.
    """
    if config.sft.num_steps or config.sft.load is not None:
        raise ValueError(
            f"sft.num_steps={config.sft.num_steps} and sft.load={config.sft.load}: a fresh trainer has no warm start; "
            "set sft.num_steps=0 and no sft.load, or train by worldmtp.training.run."
        )
    import_user_modules(config.imports)
    rollout = config.agent.rollout
    env = make_env(config.env, rollout.num_prompts * rollout.group_size)
    model = on_device(make_model(config.model, env, stream_seed(config.seed, "model")), config.profile)
    prompts = draw_run_prompts(env, config)
    choose_pool(env, prompts, config)
    return FreshTrainer(make_trainer(config, model, env, prompts), model, env, prompts)
