"""Observations with an attention mask, for models that expect one; it says no more than ``length`` does."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Int8, Int64

from worldmtp.envs.wrappers.text_wrapper import TextVectorWrapper, text_problem


def attention_mask(length: Int64[np.ndarray, "*row 1"], width: int) -> Int8[np.ndarray, "*row width"]:
    """1 at the first ``length`` tokens, which are the text, 0 at padding."""
    return (np.arange(width) < length).astype(np.int8)


def _with_mask(obs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**obs, "attention_mask": attention_mask(obs["length"], obs["tokens"].shape[-1])}


def _space_with_mask(space: spaces.Space[Any]) -> spaces.Space[Any]:
    assert isinstance(space, spaces.Dict)
    shape = space["tokens"].shape
    assert shape is not None
    return spaces.Dict({**space.spaces, "attention_mask": spaces.MultiBinary(shape[0])})


class AttentionMask(gymnasium.ObservationWrapper, RecordConstructorArgs):
    """Adds ``attention_mask``, (L,) int8, to the observation of a ``TextGenEnv``.

    Raises:
        TypeError: if what is wrapped is no text env.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gymnasium.ObservationWrapper.__init__(self, env)
        text_problem(env)
        self.observation_space = _space_with_mask(env.observation_space)

    def observation(self, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The observation and the mask."""
        return _with_mask(observation)


class VectorAttentionMask(TextVectorWrapper):
    """Adds ``attention_mask``, (N, L) int8, to the observations of a ``TextGenVectorEnv``, final ones included.

    (Gymnasium's VectorObservationWrapper refuses envs that reset in the same step, since it would lose the latter.)

    Raises:
        TypeError: if what is wrapped is no vector text env.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self.single_observation_space = _space_with_mask(env.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """As of the env, with masks."""
        obs, infos = self.env.reset(seed=seed, options=options)
        return _with_mask(obs), infos

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """As of the env, with masks."""
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        if "final_obs" in infos:
            final = infos["final_obs"].copy()
            for row in np.flatnonzero(infos["_final_obs"]).tolist():
                final[row] = _with_mask(final[row])
            infos = {**infos, "final_obs": final}
        return _with_mask(obs), rewards, terminated, truncated, infos

    def load_own_state(self, state: Mapping[str, Any], obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The observation with masks."""
        return _with_mask(obs)
