"""Other views of the same rows: observations with an attention mask, infos of numbers only. They hold no state."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Int8, Int64

from worldmtp.envs.rows import Observation, VectorReset
from worldmtp.envs.text_env import TextVectorWrapper


def attention_mask(length: Int64[np.ndarray, "*row 1"], width: int) -> Int8[np.ndarray, "*row width"]:
    """Return 1 at the first ``length`` tokens, which are the text, and 0 at padding."""
    return (np.arange(width) < length).astype(np.int8)


class VectorAttentionMask(TextVectorWrapper):
    """Adds ``attention_mask``, (N, L) int8, to the observations of a ``TextGenVectorEnv``.

    It is for models that expect one, and says no more than ``length`` does.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        space = env.single_observation_space
        assert isinstance(space, spaces.Dict)
        (width,) = space["tokens"].shape or (0,)
        self.single_observation_space = spaces.Dict({**space.spaces, "attention_mask": spaces.MultiBinary(width)})
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def shown(self, obs: Observation, infos: dict[str, Any]) -> VectorReset:
        """Return the observation with masks."""
        return {**obs, "attention_mask": attention_mask(obs["length"], obs["tokens"].shape[-1])}, infos


class VectorNumericInfos(TextVectorWrapper):
    """Leaves the texts out of the infos of a ``TextGenVectorEnv``, and stacks final observations.

    It goes under wrappers that turn all they see into tensors, such as gymnasium's NumpyToTorch, and over
    ``Autoreset``: ``final_obs`` becomes a dict of arrays (N, ...), zero where ``_final_obs`` is false.
    """

    follows_episodes = False

    def shown(self, obs: Observation, infos: dict[str, Any]) -> VectorReset:
        """Return the infos without texts."""
        return obs, _numeric(infos)


def _numeric(infos: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in infos.items():
        if key.startswith("_") and key[1:] in infos:
            continue
        if key == "final_obs":
            kept[key] = _stacked(value)
        elif isinstance(value, Mapping):
            kept[key] = _numeric(value)
        elif value.dtype != object:
            kept[key] = value
    return kept | {f"_{key}": infos[f"_{key}"] for key in list(kept) if f"_{key}" in infos}


def _stacked(final: np.ndarray) -> dict[str, np.ndarray]:
    """One array a key of the rows' observations."""
    ended = [row for row, obs in enumerate(final) if obs is not None]
    stacked = {
        key: np.zeros((len(final), *np.shape(value)), np.asarray(value).dtype) for key, value in final[ended[0]].items()
    }
    for row in ended:
        for key, value in final[row].items():
            stacked[key][row] = value
    return stacked
