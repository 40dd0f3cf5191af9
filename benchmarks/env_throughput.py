"""Env steps per second of TextGenVectorEnv, beside gymnasium's SyncVectorEnv of our own single env.

Random tokens, so episodes end early and often: scorer, decoder and prompts weigh more than in training. "unscored" is
the same env with a constant for a score and a vocabulary that ends episodes less often. Run it as a script.
"""

import argparse
import os
import time
from collections.abc import Sequence

import gymnasium
import numpy as np
from jaxtyping import Int64

import worldmtp.envs  # noqa: F401 - registers the ids
from worldmtp.envs import Example, Score
from worldmtp.envs.tasks.copy import Copy


class Unscored(Copy):
    """Copy, whose answers are all worth nothing."""

    nothing = Score(0.0)

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """A constant."""
        return self.nothing


def steps_per_second(envs: gymnasium.vector.VectorEnv, seconds: float) -> float:
    """Rate of ``envs`` under random tokens, over at least ``seconds``."""
    rng = np.random.default_rng(0)
    vocab_size = int(envs.single_action_space.n)  # type: ignore[attr-defined]  # Discrete
    actions = rng.integers(vocab_size, size=(64, envs.num_envs))
    envs.reset(seed=0)
    for column in actions:
        envs.step(column)
    num_steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for column in actions:
            envs.step(column)
        num_steps += actions.size
    return num_steps / (time.perf_counter() - start)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ids", nargs="+", default=["worldmtp/Copy-v0", "worldmtp/ChainSum-v0"])
    parser.add_argument("--num-envs", nargs="+", type=int, default=[16, 256])
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args(arguments)
    print(f"{os.cpu_count()} cores; env steps per second, one process, random tokens")
    print(f"{'id':<24}{'envs':>6}{'ours':>12}{'sync':>12}{'ratio':>8}")
    for name in options.ids:
        for num_envs in options.num_envs:
            ours = steps_per_second(gymnasium.make_vec(name, num_envs), options.seconds)
            sync = steps_per_second(gymnasium.make_vec(name, num_envs, "sync", pool_size=256), options.seconds)
            print(f"{name:<24}{num_envs:>6}{ours:>12,.0f}{sync:>12,.0f}{ours / sync:>8.1f}")
    for num_envs in options.num_envs:
        unscored = gymnasium.make_vec("worldmtp/Copy-v0", num_envs, task=Unscored(), tokenizer="char")
        rate = steps_per_second(unscored, options.seconds)
        print(f"{'Copy, unscored, V = 97':<24}{num_envs:>6}{rate:>12,.0f}")


if __name__ == "__main__":
    main()
