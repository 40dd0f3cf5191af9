"""What holds in a fresh interpreter: lazy imports, the same episodes from the same seed, global generators left alone.

Fresh because beartype, under which these tests run, draws from Python's global generator itself.
"""

import os
import subprocess
import sys

LAZY = """
import sys
import worldmtp.envs
import gymnasium
assert "worldmtp/Copy-v0" in gymnasium.registry
envs = gymnasium.make_vec("worldmtp/Copy-v0", num_envs=2)
envs.reset(seed=0)
heavy = ("torch", "transformers", "tokenizers", "trl", "hydra", "reasoning_gym")
print([name for name in heavy if name in sys.modules])
"""

UNTOUCHED = """
import random
import numpy as np

def states():
    return repr(random.getstate()), repr(np.random.get_state())

before = states()
import gymnasium
from worldmtp.envs import make_task, draw_examples

# pool_matrix seeds numpy's global generator for every item, list_functions draws from Python's
for name in ("chain_sum", "spell_backward", "pool_matrix", "list_functions"):
    draw_examples(make_task(name, {"calibration_items": 4}), "train", 20, seed=0)
for name in ("Copy", "RandomDigits", "ChainSum"):
    envs = gymnasium.make_vec(f"worldmtp/{name}-v0", num_envs=4, pool_size=64)
    envs.reset(seed=0)
    for token in range(2, 12):
        envs.step(np.full(4, token))
print(states() == before)
"""

EPISODES = """
import gymnasium
import numpy as np
import worldmtp.envs

tokens = np.random.default_rng(5)
for name in ("Copy", "SpellBackward"):
    envs = gymnasium.make_vec(f"worldmtp/{name}-v0", num_envs=8, pool_size=64)
    obs, infos = envs.reset(seed=3)
    for _ in range(20):
        print(infos.get("prompt_text"), infos.get("final_info", {}).get("score"))
        obs, rewards, terminated, truncated, infos = envs.step(tokens.integers(13, size=8))
    print(envs.examples("heldout", 5, 1))
"""


def run(script: str, hash_seed: str = "0") -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_and_stepping_loads_nothing_heavy():
    assert run(LAZY).strip() == "[]"


def test_global_generators_are_left_alone():
    assert run(UNTOUCHED).strip() == "True"


def test_the_same_seed_gives_the_same_episodes_in_two_processes():
    first, second = run(EPISODES, hash_seed="1"), run(EPISODES, hash_seed="2")
    assert first == second
    assert first.count("prompt=") == 10
