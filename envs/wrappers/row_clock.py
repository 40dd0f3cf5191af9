"""Which rows of a vector env a step was a step of: in every autoreset mode, for wrappers that follow episodes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from jaxtyping import Bool


@dataclass(frozen=True)
class RowStep:
    """``ran``: the row took its action. ``ended``: with it. ``fresh``: the row now shows a new prompt."""

    ran: Bool[np.ndarray, " row"]
    ended: Bool[np.ndarray, " row"]
    fresh: Bool[np.ndarray, " row"]


class RowClock:
    """Told of every reset and step, knows the rows whose next action will be ignored.

    Raises:
        TypeError: if the env does not say in its metadata how rows are reset.
    """

    def __init__(self, env: VectorEnv) -> None:
        mode = env.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise TypeError(f"metadata['autoreset_mode'] of {env} must be gymnasium's AutoresetMode, got {mode!r}.")
        self._mode = mode
        self.waiting: Bool[np.ndarray, " row"] = np.zeros(env.num_envs, dtype=bool)
        """Rows that have ended and whose next action will be ignored."""

    def begun_by(self, options: Mapping[str, Any] | None) -> Bool[np.ndarray, " row"]:
        """Rows that a reset with these options begins; asked before it, since wrappers below may take the mask."""
        mask = (options or {}).get("reset_mask")
        return np.ones_like(self.waiting) if mask is None else np.array(mask, dtype=bool)

    def begin(self, begun: Bool[np.ndarray, " row"]) -> None:
        """These rows have begun; said after the reset, which may have been refused."""
        self.waiting = self.waiting & ~begun

    def step(self, terminated: Bool[np.ndarray, " row"], truncated: Bool[np.ndarray, " row"]) -> RowStep:
        """What a step with these flags was."""
        ended, waited = terminated | truncated, self.waiting
        if self._mode is AutoresetMode.SAME_STEP:
            return RowStep(~waited, ended, ended.copy())
        if self._mode is AutoresetMode.NEXT_STEP:
            self.waiting = ended.copy()
            return RowStep(~waited, ended, waited)
        self.waiting = waited | ended
        return RowStep(~waited, ended, np.zeros_like(waited))


def row_observation(obs: Mapping[str, np.ndarray], infos: Mapping[str, Any], row: int) -> dict[str, np.ndarray]:
    """What the row's episode looks like after a step, also where the row shows the next one's prompt already."""
    if "final_obs" in infos and infos["_final_obs"][row]:
        return dict(infos["final_obs"][row])
    return {key: value[row] for key, value in obs.items()}
