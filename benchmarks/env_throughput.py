"""Env steps per second of TextGenVectorEnv, beside gymnasium's SyncVectorEnv of our own single env, in one process.

    python benchmarks/env_throughput.py

Random tokens, so episodes end early and often: scorer, decoder and prompts weigh more than in training. "unscored" is
the same env with a constant for a score, with prompts of up to 32 and answers of up to 24 tokens of printable ASCII
(V = 97). Arms take turns in short rounds, so that what slows the machine down slows all; rates are medians of rounds.

The last line is what token environments of the field have done with an observation at each step (RL4LMs,
https://arxiv.org/abs/2210.01241: prompt, context and both together, each padded on the left and with its mask, copied,
and the text decoded anew), written again here for one row, without a score.
"""

import argparse
import copy
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Int64

from worldmtp.envs import CharTokenizer, Example, Score
from worldmtp.envs.tasks.strings import Copy

LONG = {"tokenizer": "char", "max_prompt": 32, "max_new": 24}
"""Budgets of the unscored rows."""


class Unscored(Copy):
    """Copy, whose answers are all worth nothing."""

    nothing = Score(0.0)

    def __init__(self) -> None:
        super().__init__(max_length=23)

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """A constant."""
        return self.nothing


class Stepper:
    """Random tokens for one environment; each call is one round and returns its rate."""

    def __init__(self, envs: gymnasium.vector.VectorEnv) -> None:
        vocab_size = int(envs.single_action_space.n)  # type: ignore[attr-defined]  # Discrete
        self._envs = envs
        self._actions = np.random.default_rng(0).integers(vocab_size, size=(64, envs.num_envs))
        envs.reset(seed=0)
        for column in self._actions:
            envs.step(column)

    def __call__(self, seconds: float) -> float:
        """Env steps per second, over at least so many seconds."""
        num_steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for column in self._actions[:16]:
                self._envs.step(column)
            num_steps += self._actions[:16].size
        return num_steps / (time.perf_counter() - start)


class PaddedObservations:
    """The observation update described above, for one row."""

    def __init__(self, max_prompt: int, max_new: int) -> None:
        self._tokenizer = CharTokenizer()
        rng = np.random.default_rng(0)
        self._prompt = rng.integers(2, self._tokenizer.vocab_size, size=max_prompt - 4)
        self._sizes = {"prompt": max_prompt, "context": max_new, "input": max_prompt + max_new}
        self._max_new = max_new

    def __call__(self, seconds: float) -> float:
        """Steps per second, over at least so many seconds."""
        num_steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            context: list[int] = []
            obs = self._observe(context)
            for token in range(2, 2 + self._max_new):
                context = [*context, token]
                obs = copy.deepcopy(obs) | self._observe(context)
            num_steps += self._max_new
        return num_steps / (time.perf_counter() - start)

    def _observe(self, context: list[int]) -> dict[str, Any]:
        parts = {"prompt": self._prompt.tolist(), "context": context, "input": [*self._prompt.tolist(), *context]}
        obs: dict[str, Any] = {"text": self._tokenizer.decode(parts["input"])}
        for name, ids in parts.items():
            padded = np.zeros(self._sizes[name], dtype=np.int64)
            padded[len(padded) - len(ids) :] = ids
            obs[name], obs[f"{name}_mask"] = padded, padded != 0
        return obs


def rates(arms: dict[str, Callable[[float], float]], seconds: float, num_rounds: int) -> dict[str, float]:
    """The median rate of each arm over rounds in which they take turns."""
    seen = [{name: arm(seconds / num_rounds) for name, arm in arms.items()} for _ in range(num_rounds)]
    return {name: float(np.median([one[name] for one in seen])) for name in arms}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", nargs="+", default=["worldmtp/Copy-v0", "worldmtp/ChainSum-v0"])
    parser.add_argument("--num-envs", nargs="+", type=int, default=[16, 256])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each arm")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    print(
        f"{os.cpu_count()} cores; env steps per second, one process, random tokens; gymnasium {gymnasium.__version__}"
    )
    print(f"{'id':<28}{'envs':>6}{'ours':>12}{'sync':>12}{'ratio':>8}")
    unscored = {**LONG, "task": Unscored()}
    for name, kwargs in [*((name, {}) for name in options.ids), ("worldmtp/Copy-v0", unscored)]:
        for num_envs in options.num_envs:
            arms = {
                "ours": Stepper(gymnasium.make_vec(name, num_envs, **kwargs)),
                "sync": Stepper(gymnasium.make_vec(name, num_envs, "sync", pool_size=256, **kwargs)),
            }
            seen = rates(arms, options.seconds, options.rounds)
            label = "Copy, long, unscored" if kwargs else name
            ours, sync = seen["ours"], seen["sync"]
            print(f"{label:<28}{num_envs:>6}{ours:>12,.0f}{sync:>12,.0f}{ours / sync:>8.1f}")
    padded = rates({"one row": PaddedObservations(32, 24)}, options.seconds, options.rounds)
    print(f"{'padded on the left, copied':<28}{1:>6}{padded['one row']:>12,.0f}")


if __name__ == "__main__":
    main()
