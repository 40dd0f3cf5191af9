"""Every episode that ends becomes a line of a JSON Lines file, readable by pandas and ``read_episodes``.

A line has ``env_id`` (null where the env was not made by an id), ``seed`` (of the last seeded reset of all rows, or
null), ``group`` (counted from that reset), ``row``, ``split``, ``example_key``, ``prompt``, ``prompt_ids``, ``ids``,
``text``, ``score``, ``exact``, ``components``, ``reason``, ``num_tokens``, ``terminated`` and ``truncated``. ``ids``
are those of the row as they were sampled, EOS included, never encoded again from text. Of conversations ``acted`` says
which of them the policy wrote.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv

from worldmtp.envs.problem import TextProblem
from worldmtp.envs.splits import split_of
from worldmtp.envs.wrappers.episode_log import EpisodeLog
from worldmtp.envs.wrappers.row_clock import RowClock, row_observation
from worldmtp.envs.wrappers.text_wrapper import TextVectorWrapper, text_problem

_FROM_INFO = ("text", "score", "exact", "components", "reason", "num_tokens")


class EpisodeRecorder(gymnasium.Wrapper, RecordConstructorArgs):
    """Appends the episodes of a ``TextGenEnv`` to a file.

    Args:
        env: a ``TextGenEnv``.
        path: of the file; folders are made. One recorder at a time may write to it.

    Raises:
        TypeError: if what is wrapped is no text env.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], path: str | Path) -> None:
        RecordConstructorArgs.__init__(self, path=str(path))
        gymnasium.Wrapper.__init__(self, env)
        self._problem = text_problem(env)
        self._log = EpisodeLog(path)
        self._seed: int | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As of the env."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._seed = self._seed if seed is None else seed
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As of the env; an end is written down."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            origin = {
                "env_id": self.env.spec and self.env.spec.id,
                "seed": self._seed,
                "group": info["group"],
                "row": 0,
            }
            self._log.write(episode(origin, self._problem, obs, info, bool(terminated), bool(truncated)))
        return obs, reward, terminated, truncated, info


class VectorEpisodeRecorder(TextVectorWrapper):
    """Appends the episodes of a ``TextGenVectorEnv`` to a file, in the order of their ends.

    Args:
        env: a ``TextGenVectorEnv``.
        path: of the file; folders are made. One recorder at a time may write to it.

    Raises:
        TypeError: if what is wrapped is no vector text env.
    """

    def __init__(self, env: VectorEnv, path: str | Path) -> None:
        super().__init__(env)
        self._log = EpisodeLog(path)
        self._clock = RowClock(env)
        self._seed: int | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """As of the env."""
        begun = self._clock.begun_by(options)
        obs, infos = self.env.reset(seed=seed, options=options)
        self._clock.begin(begun)
        if seed is not None:
            self._seed = seed if begun.all() else None  # groups are counted from a seeded reset of all rows only
        return obs, infos

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """As of the env; ends are written down."""
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        played = self._clock.step(terminated, truncated)
        for row in np.flatnonzero(played.ended).tolist():
            info = row_info(infos["final_info"], row)
            spec = self.env.spec
            origin = {"env_id": spec and spec.id, "seed": self._seed, "group": info["group"], "row": row}
            last = row_observation(obs, infos, row)
            self._log.write(episode(origin, self.problem, last, info, bool(terminated[row]), bool(truncated[row])))
        return obs, rewards, terminated, truncated, infos

    def own_state(self) -> dict[str, Any]:
        """The seed, and rows that wait for their reset."""
        return {"seed": self._seed, "waiting": self._clock.waiting.tolist()}

    def load_own_state(self, state: Mapping[str, Any], obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Go on from there; what the file has is left as it is."""
        self._seed, self._clock.waiting = state["seed"], np.array(state["waiting"], dtype=bool)
        return obs


def row_info(infos: Mapping[str, Any], row: int) -> dict[str, Any]:
    """What batched infos say of one row."""
    info = {}
    for key, value in infos.items():
        if f"_{key}" in infos and infos[f"_{key}"][row]:
            if isinstance(value, Mapping):
                info[key] = row_info(value, row)
            else:
                info[key] = value[row].item() if isinstance(value[row], np.generic) else value[row]
    return info


def episode(
    origin: Mapping[str, Any],
    problem: TextProblem,
    obs: Mapping[str, np.ndarray],
    info: Mapping[str, Any],
    terminated: bool,
    truncated: bool,
) -> dict[str, Any]:
    """The line of an episode by its last observation and info."""
    start, stop = int(obs["prompt_length"][0]), int(obs["length"][0])
    key = info["example_key"]
    line = {
        **origin,
        "split": split_of(key, problem.heldout_fraction),
        "example_key": key,
        "prompt": info["prompt_text"],
        "prompt_ids": obs["tokens"][:start].tolist(),
        "ids": obs["tokens"][start:stop].tolist(),
        **{name: info[name] for name in _FROM_INFO},
        "terminated": terminated,
        "truncated": truncated,
    }
    return line | ({"acted": info["acted"][start:stop].tolist()} if "acted" in info else {})
