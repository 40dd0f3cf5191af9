"""What a step must not do: checks whose answer never changes, of which one of a protocol takes 15 microseconds."""

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from worldmtp.envs.task import Task


@pytest.fixture
def no_protocol_checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions of our sources that have asked whether something is of a protocol; not the tests' type checks."""
    asked: list[str] = []
    real = type(Task).__instancecheck__

    def spy(protocol: Any, value: Any) -> bool:
        code = sys._getframe(1).f_code
        if getattr(protocol, "_is_protocol", False) and Path(code.co_filename).is_file():
            asked.append(code.co_name)
        return real(protocol, value)

    monkeypatch.setattr(type(Task), "__instancecheck__", spy)
    return asked


@pytest.mark.parametrize("env_id", ["worldmtp/Copy-v0", "worldmtp/IncreasingNumbers-v0", "worldmtp/GuessNumber-v0"])
@pytest.mark.parametrize("mode", ["same_step", "next_step"])
def test_a_step_of_many_rows_asks_no_protocol(env_id: str, mode: str, no_protocol_checks: list[str]) -> None:
    """Over episodes that end and begin again: of a plain task, one that pays by the token, and a world."""
    envs = gymnasium.make_vec(env_id, 4, autoreset_mode=mode)
    envs.reset(seed=0)
    made = len(no_protocol_checks)
    assert made > 0  # the environment was made with such questions, so the spy hears them
    rng, num_ends = np.random.default_rng(0), 0
    for _ in range(200):
        _, _, terminated, truncated, _ = envs.step(rng.integers(envs.single_action_space.n, size=4))
        num_ends += int((terminated | truncated).sum())
    assert num_ends > 4
    assert set(no_protocol_checks[made:]) <= {"make_world"}  # what a user's class makes is checked once an episode


def test_a_step_of_one_text_asks_no_protocol(no_protocol_checks: list[str]) -> None:
    env = gymnasium.make("worldmtp/Copy-v0", disable_env_checker=True)
    env.reset(seed=0)
    made = len(no_protocol_checks)
    assert made > 0
    for token in (2, 3, 1):
        _, _, terminated, truncated, _ = env.step(token)
        if terminated or truncated:
            env.reset()
    assert no_protocol_checks[made:] == []
