"""Infos of numbers only, under wrappers that turn all they see into tensors.

Gymnasium's NumpyToTorch converts infos too, and there is no tensor of texts.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from worldmtp.envs.wrappers.text_wrapper import TextVectorWrapper


class VectorNumericInfos(TextVectorWrapper):
    """Leaves the texts out of the infos of a ``TextGenVectorEnv``, and stacks final observations.

    ``final_obs`` becomes a dict of arrays (N, ...), zero where ``_final_obs`` is false.

    Raises:
        TypeError: if what is wrapped is no vector text env.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As of the env, without texts."""
        obs, infos = self.env.reset(seed=seed, options=options)
        return obs, _numeric(infos)

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """As of the env, without texts."""
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        return obs, rewards, terminated, truncated, _numeric(infos)


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
