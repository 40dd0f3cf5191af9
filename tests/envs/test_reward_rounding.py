"""Rewards of a world that add up to one but for rounding."""

import numpy as np
import pytest

from worldmtp.envs import CharTokenizer, TextGenEnv, TextGenVectorEnv, check_text_env
from worldmtp.envs.worlds.task import WorldTask


def kwargs_of(task):
    return {"task": task, "tokenizer": CharTokenizer("ab=!"), "max_prompt": 2, "max_new": 12, "pool_size": 16}


class Pays:
    """Pays the same in each of so many turns."""

    def __init__(self, reward=0.1, turns=10):
        self.reward, self.turns = reward, turns

    def reset(self, seed):
        self.heard = []
        return "ab"[seed % 2] + "=", {}

    def step(self, text):
        self.heard.append(text)
        return "", self.reward, len(self.heard) == self.turns, False, {}


@pytest.mark.parametrize(
    ("reward", "turns", "score", "exact"),
    [
        (0.1, 10, 0.9999999999999999, True),  # in double precision the tenths stay below 1
        (float(np.float32(0.1)), 10, 1.0, True),  # of float32 a tenth is 0.10000000149, ten of them 1.0000000149
        (1 / 3 + 1e-8, 3, 1.0, True),  # 1 + 3e-8
        (-1e-8, 3, 0.0, False),
        (0.4, 3, 1.2000000000000002, True),  # really outside: passed on, for the checks and the trainer to refuse
    ],
)
@pytest.mark.parametrize("kind", [TextGenEnv, TextGenVectorEnv])
def test_rewards_that_add_up_to_one_but_for_rounding_are_one(kind, reward, turns, score, exact):
    kwargs = kwargs_of(WorldTask(Pays, {"reward": reward, "turns": turns}, num_seeds=64))
    env = kind(1, autoreset_mode="disabled", **kwargs) if kind is TextGenVectorEnv else kind(**kwargs)
    env.reset(seed=0)
    total = 0.0
    for _ in range(turns):
        _, paid, terminated, _, info = env.step(np.array([1]) if kind is TextGenVectorEnv else 1)
        total += float(np.sum(paid))
    assert np.all(terminated)
    final = info.get("final_info", info)
    assert np.ravel(final["score"]).tolist() == [score]
    assert np.ravel(final["exact"]).tolist() == [exact]
    assert total == pytest.approx(score, abs=1e-15)


def test_the_probes_of_a_world_of_tenths_lie_in_the_unit_interval():
    """What a constant player earns is a sum of float32 tenths, too."""
    task = WorldTask(Pays, {"reward": float(np.float32(0.1))}, probe_bound=1.0, num_seeds=64)
    assert check_text_env(TextGenEnv(**kwargs_of(task)), 8).probe_value == 1.0
