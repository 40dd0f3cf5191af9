"""Every episode that ends becomes a line of a JSON Lines file, readable by pandas and ``read_episodes``.

A line has ``env_id`` (null where the env was not made by an id), ``seed`` (of the last seeded reset of all rows, or
null), ``group`` (counted from that reset), ``row``, ``split``, ``example_key``, ``prompt``, ``prompt_ids``, ``ids``,
``text``, ``score``, ``exact``, ``components``, ``reason``, ``num_tokens``, ``terminated`` and ``truncated``. ``ids``
are those of the row as they were sampled, EOS included, never encoded again from text. Of conversations ``acted`` says
which of them the policy wrote.

A line goes to the file in one write, so that a kill can cut off the line being written and no other; the file is open
for as long as that takes.
"""

import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from worldmtp.envs.rows import Observation, VectorReset, VectorStep, row_info
from worldmtp.envs.splits import split_of
from worldmtp.envs.text_env import TextVectorWrapper

_FROM_INFO = ("text", "score", "exact", "components", "reason", "num_tokens")


class EpisodeLog:
    """Appends episodes to a file, which one log at a time may write to.

    A line that an earlier run was killed in is removed, with a warning. Numbers that JSON has no word for are null.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        _remove_cut_line(self.path)

    def write(self, episode: Mapping[str, Any]) -> None:
        """Append one line."""
        line = json.dumps({key: _plain(value) for key, value in episode.items()}, allow_nan=False)
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode("ascii") + b"\n")


def read_episodes(path: str | Path) -> list[dict[str, Any]]:
    """Episodes of a file, in the order of their ends; a last line without its line break was cut off and is left out.

    Raises:
        ValueError: if another line is not JSON.
    """
    episodes = []
    *lines, _cut_off = Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            episodes.append(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"line {number} of {path} is no JSON ({error}); an EpisodeLog did not write it."
            ) from error
    return episodes


def _remove_cut_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
        warnings.warn(
            f"the last line of {path} was cut off after {len(content) - whole} bytes and has been removed: "
            "what wrote it was killed, and that episode is lost.",
            RuntimeWarning,
            stacklevel=4,
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class VectorEpisodeRecorder(TextVectorWrapper):
    """Appends the episodes of a ``TextGenVectorEnv`` to a file, in the order of their ends.

    Args:
        env: a ``TextGenVectorEnv``.
        path: of the file; folders are made. One recorder at a time may write to it: a run records its training
            alone, and not its evaluations. What it repeats after a kill is recorded again.
    """

    writes_a_file = True

    def __init__(self, env: VectorEnv, path: str | Path) -> None:
        super().__init__(env)
        self._log = EpisodeLog(path)
        self._seed: int | None = None

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> VectorReset:
        """As of the env."""
        mask = (options or {}).get("reset_mask")
        is_of_all = mask is None or bool(np.all(mask))
        obs, infos = super().reset(seed=seed, options=options)
        if seed is not None:
            self._seed = seed if is_of_all else None  # groups are counted from a seeded reset of all rows only
        return obs, infos

    def step(self, actions: np.ndarray) -> VectorStep:
        """As of the env; ends are written down."""
        obs, rewards, terminated, truncated, infos = super().step(actions)
        for row in np.flatnonzero(terminated | truncated).tolist():
            info = row_info(infos["final_info"], row)
            spec = self.env.spec
            origin = {"env_id": spec and spec.id, "seed": self._seed, "group": info["group"], "row": row}
            last = {key: value[row] for key, value in obs.items()}
            ended = {"terminated": bool(terminated[row]), "truncated": bool(truncated[row])}
            self._log.write(_episode(origin, self.dataset.heldout_fraction, last, info) | ended)
        return obs, rewards, terminated, truncated, infos

    def own_state(self) -> dict[str, Any]:
        """Return the seed."""
        return {"seed": self._seed}

    def load_own_state(self, state: Mapping[str, Any], obs: Observation) -> Observation:
        """Go on from there; what the file has is left as it is."""
        self._seed = state["seed"]
        return obs


def _episode(
    origin: Mapping[str, Any], heldout_fraction: float, obs: Mapping[str, np.ndarray], info: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the line of an episode by its last observation and info, but for how it ended."""
    start, stop = int(obs["prompt_length"][0]), int(obs["length"][0])
    key = info["example_key"]
    line = {
        **origin,
        "split": split_of(key, heldout_fraction),
        "example_key": key,
        "prompt": info["prompt_text"],
        "prompt_ids": obs["tokens"][:start].tolist(),
        "ids": obs["tokens"][start:stop].tolist(),
        **{name: info[name] for name in _FROM_INFO},
    }
    return line | ({"acted": info["acted"][start:stop].tolist()} if "acted" in info else {})
