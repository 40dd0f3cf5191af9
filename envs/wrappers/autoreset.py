"""Rows that reset themselves when they have ended, as gymnasium's vector environments do.

* ``"same_step"``: an ended row is reset in the same step; the observation is the new prompt's, the ended text's stands
  in ``infos["final_obs"][row]``.
* ``"next_step"``: the observation is the ended text's; the next step ignores the row's action, pays 0, ends nothing and
  shows the new prompt.

In both, the infos of a step that resets have those of ``reset``, too. ``gymnasium.make_vec`` puts this wrapper over all
others, which see only rows that stand still.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from worldmtp.choices import did_you_mean
from worldmtp.envs.rows import Observation, VectorReset, VectorStep
from worldmtp.envs.text_env import TextVectorWrapper


def parse_autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    """Return the mode of a name such as "same_step" or "SameStep".

    Raises:
        ValueError: if there is no such mode.
    """
    if isinstance(mode, AutoresetMode):
        return mode
    for known in AutoresetMode:
        if mode.lower() in (known.name.lower(), known.value.lower()):
            return known
    names = [known.name.lower() for known in AutoresetMode]
    raise ValueError(f"autoreset_mode={mode!r} is unknown{did_you_mean(mode, names, ';')} choose from {names}.")


def with_autoreset(env: VectorEnv, mode: str | AutoresetMode) -> VectorEnv:
    """Return the environment in this autoreset mode: itself if that is "disabled"."""
    parsed = parse_autoreset_mode(mode)
    return env if parsed is AutoresetMode.DISABLED else Autoreset(env, parsed)


class Autoreset(TextVectorWrapper):
    """Resets the rows of a ``TextGenVectorEnv`` when they have ended.

    Args:
        env: rows that stand still when they end.
        mode: "same_step", "next_step", or gymnasium's AutoresetMode.

    Raises:
        ValueError: if the mode is unknown or "disabled", or rows share prompts, which they cannot keep on sharing.
    """

    def __init__(self, env: VectorEnv, mode: str | AutoresetMode) -> None:
        super().__init__(env)
        self._mode = parse_autoreset_mode(mode)
        if self._mode is AutoresetMode.DISABLED:
            raise ValueError("autoreset_mode='disabled' is the environment as it is; leave Autoreset out.")
        self.metadata = {**env.metadata, "autoreset_mode": self._mode}
        self._check_group_size(getattr(self.kernel, "group_size", 1))

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> VectorReset:
        """Begin new texts, as the env does.

        Raises:
            ValueError: if an option is unknown or impossible; ``group_size`` is 1 here, and no row stands still.
        """
        self._check_group_size((options or {}).get("group_size") or 1)
        if (options or {}).get("ends_others"):
            raise ValueError(
                f"ends_others=True needs autoreset_mode='disabled', got {self._mode.value!r}: rows that reset "
                "themselves when they end do not stand still."
            )
        return super().reset(seed=seed, options=options)

    def step(self, actions: np.ndarray) -> VectorStep:
        """Step the env and reset the rows that have ended, now or before."""
        waiting = self.done
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        if self._mode is AutoresetMode.SAME_STEP:
            waiting = terminated | truncated
            if waiting.any():
                infos = infos | {"final_obs": _rows_of(obs, waiting), "_final_obs": waiting.copy()}
        if waiting.any():
            obs, begun = self.env.reset(options={"reset_mask": waiting})
            infos = infos | begun
        return obs, rewards, terminated, truncated, infos

    def own_state(self) -> dict[str, Any]:
        """Return the mode."""
        return {"autoreset_mode": self._mode.value}

    def load_own_state(self, state: Mapping[str, Any], obs: Observation) -> Observation:
        """Go on in the same mode.

        Raises:
            ValueError: if the snapshot was taken in another mode.
        """
        if state["autoreset_mode"] != self._mode.value:
            raise ValueError(
                f"this state does not belong to this env: its autoreset mode is {state['autoreset_mode']!r}; expected "
                f"{self._mode.value!r}."
            )
        return obs

    def _check_group_size(self, group_size: int) -> None:
        if group_size > 1:
            raise ValueError(
                f"group_size={group_size} needs autoreset_mode='disabled', got {self._mode.value!r}: "
                "rows that reset at their own ends cannot keep sharing a prompt."
            )


def _rows_of(obs: Mapping[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Return an object array with the observations of these rows, copied, and None elsewhere."""
    final = np.full(len(rows), None)
    taken = {key: value[rows] for key, value in obs.items()}
    for index, row in enumerate(rows.nonzero()[0].tolist()):
        final[row] = {key: value[index] for key, value in taken.items()}
    return final
