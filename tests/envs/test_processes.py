"""What holds in a fresh interpreter: imports are lazy, global generators left alone.

Fresh because beartype, under which these tests run, draws from Python's global generator itself.
"""

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
print(states() == before)
"""


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_and_stepping_loads_nothing_heavy():
    assert run(LAZY).strip() == "[]"


def test_global_generators_are_left_alone():
    assert run(UNTOUCHED).strip() == "True"
