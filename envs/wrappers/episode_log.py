"""A JSON Lines file of episodes: written line by line, read back whatever happened while it was written.

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
