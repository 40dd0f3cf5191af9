"""CPU time of a step of TextGenVectorEnv by the room of its rows, beside a kernel that copies its rows in each step.

    python benchmarks/env_length.py

The rows are those of a task that pays nothing, and nobody ends them: what is left is the kernel's own work. Arms take
turns in short rounds, and times are CPU time of this process, medians over rounds.

* ``in place``: ``copy=False``, as training steps it.
* ``copied out``: ``copy=True``, new observations in each call, as gymnasium promises.
* ``copies``: states that are never changed, each made of a copy of the last, and copied once more to be shown.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64

from worldmtp.envs import Example, Score, TextGenVectorEnv

_VOCABULARY = "abcdefghij="
_FIRST_LETTER = 2


class Unscored:
    """Prompts of one letter; no answer is worth anything."""

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        """Return a letter."""
        return Example(str(rng.choice(list(_VOCABULARY[:-1]))) + "=")

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """Return nothing."""
        return Score(0.0)


class CopyingRows:
    """The same step on states that are never changed: tokens, lengths and ends are copied for each."""

    def __init__(self, num_rows: int, max_prompt: int, max_new: int) -> None:
        self._shape = num_rows, max_prompt + max_new
        self._max_new = max_new
        self.reset()

    def reset(self) -> None:
        """Begin with prompts of two tokens."""
        self._tokens = np.zeros(self._shape, dtype=np.int64)
        self._length = np.full(self._shape[0], 2)
        self._prompt_length = self._length.copy()
        self._done = np.zeros(self._shape[0], dtype=bool)

    def step(self, actions: Int64[np.ndarray, " row"]) -> dict[str, np.ndarray]:
        """Append a token to each row."""
        tokens, length = self._tokens.copy(), self._length.copy()
        rows = np.flatnonzero(~self._done)
        tokens[rows, length[rows]] = actions[rows]
        length[rows] += 1
        truncated = ~self._done & (length - self._prompt_length >= self._max_new)
        self._tokens, self._length, self._done = tokens, length, self._done | truncated
        return {
            "tokens": tokens.copy(),
            "length": length[:, None].copy(),
            "prompt_length": self._prompt_length[:, None].copy(),
        }


def make_env(num_rows: int, max_new: int, copy: bool) -> TextGenVectorEnv:
    """Return rows that nobody ends."""
    return TextGenVectorEnv(
        num_rows,
        task=Unscored(),
        tokenizer=f"char:{_VOCABULARY}",
        max_prompt=2,
        max_new=max_new,
        pool_size=64,
        copy=copy,
    )


def step_seconds(
    reset: Callable[[], object], step: Callable[[np.ndarray], object], columns: Sequence[np.ndarray]
) -> float:
    """Return the mean time of a step of one episode; its reset is not counted."""
    reset()
    start = time.process_time()
    for column in columns:
        step(column)
    return (time.process_time() - start) / len(columns)


def measure(num_rows: int, max_new: int, num_rounds: int) -> dict[str, float]:
    """Return the median time of a step of each arm, in milliseconds."""
    rng = np.random.default_rng(0)
    columns = rng.integers(_FIRST_LETTER, _FIRST_LETTER + 10, size=(min(max_new - 1, 64), num_rows))
    copying = CopyingRows(num_rows, 2, max_new)
    arms: dict[str, tuple[Callable[[], object], Callable[[np.ndarray], object]]] = {
        "copies": (copying.reset, copying.step)
    }
    for name, copy in (("copied out", True), ("in place", False)):
        env = make_env(num_rows, max_new, copy)
        arms[name] = (env.reset, env.step)
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(num_rounds):
        for name, (reset, step) in arms.items():
            times[name].append(step_seconds(reset, step, list(columns)))
    return {name: 1000 * float(np.median(seconds)) for name, seconds in times.items()}


def main() -> None:
    """Print a line for each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    print(f"ms a step of {arguments.rows} rows, and what copying costs beside writing in place")
    print(f"{'max_new':>8}  {'copies':>10}  {'copied out':>10}  {'in place':>10}  ratio")
    for max_new in (9, 512, 4096):
        found = measure(arguments.rows, max_new, arguments.rounds)
        shown = "  ".join(f"{found[name]:>10.4f}" for name in ("copies", "copied out", "in place"))
        print(f"{max_new:>8}  {shown}  {found['copies'] / found['in place']:.1f}")


if __name__ == "__main__":
    main()
