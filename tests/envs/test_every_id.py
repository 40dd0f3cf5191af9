"""What holds for every registered id: parity with single envs, checkers, splits, equal play in two processes."""

import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

import worldmtp.envs  # noqa: F401 - registers
from worldmtp.envs import TextGenEnv, TextVectorEnv, check_text_env, check_vector_env
from worldmtp.envs.catalogue import LAKES, WORLD_TASKS
from worldmtp.envs.task import TurnTask

IDS = sorted(name for name in gymnasium.registry if name.startswith("worldmtp/"))
NEEDS_ARGUMENTS = {"worldmtp/Data-v0", "worldmtp/RewardModel-v0"}
"""Ids that are nothing without what a user says."""
WORLDS = {f"worldmtp/{name}-v0" for name in WORLD_TASKS}
IN_EVERY_MODE = {"worldmtp/Reverse-v0", "worldmtp/Pig-v0"}
"""An answer and a conversation: one kernel holds the rows of all ids, and one wrapper resets them."""
AS_ANOTHER = {f"worldmtp/{name}-v0" for name in ("TaxiDry", *LAKES) if name != "FrozenLakeSlippery"}
"""Worlds that are another one with other settings."""
STATEFUL = (WORLDS | IN_EVERY_MODE) - AS_ANOTHER
"""What has a state of its own, which an answer's rows lack."""
SAMPLED_BY_OTHERS = {"worldmtp/ChainSum-v0", "worldmtp/Taxi-v0"}
"""Ids whose questions a library draws: reasoning-gym's generators, and gymnasium's."""


@pytest.fixture
def short_kwargs_of(kwargs_of):
    """A world may have room for 600 tokens; rows of 60 show the same steps, ends and turns."""

    def kwargs(name):
        small = kwargs_of(name)
        return {"max_new": min(60, gymnasium.spec(name).kwargs.get("max_new", 60))} | small

    return kwargs


@pytest.mark.parametrize("name", IDS)
def test_the_vector_env_is_so_many_single_envs(name, assert_equal_rows):
    assert_equal_rows(name, AutoresetMode if name in IN_EVERY_MODE else [AutoresetMode.SAME_STEP])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*IDS} - IN_EVERY_MODE))
def test_it_is_in_every_autoreset_mode(name, assert_equal_rows):
    assert_equal_rows(name, {*AutoresetMode} - {AutoresetMode.SAME_STEP})


@pytest.fixture
def assert_equal_rows(short_kwargs_of, assert_parity, rng):
    """Rows of a vector env against single ones, step by step, in each of some autoreset modes."""

    def check(name, modes):
        kwargs = short_kwargs_of(name)
        single = gymnasium.make(name, **kwargs).unwrapped
        assert isinstance(single, TextGenEnv)
        assert EnvSpec.from_json(single.spec.to_json()) == single.spec
        singles = [single, *(gymnasium.make(name, **kwargs).unwrapped for _ in range(2))]
        num_steps = max(40, single.max_new + 10)
        for mode in modes:
            envs = gymnasium.make_vec(name, 3, autoreset_mode=mode.value, **kwargs)
            assert isinstance(envs, TextVectorEnv)
            assert_parity(envs, singles, rng, num_steps)

    return check


@pytest.fixture
def check_vectors(short_kwargs_of):
    """The checker of vector envs, which tries every autoreset mode."""

    def check(name):
        kwargs = short_kwargs_of(name)
        check_vector_env(lambda n, mode: gymnasium.make_vec(name, n, autoreset_mode=mode, **kwargs), 3, num_steps=30)

    return check


@pytest.mark.parametrize("name", IDS)
def test_the_checkers_pass(name, kwargs_of, check_vectors):
    report = check_text_env(name, num_examples=8, **kwargs_of(name))
    assert (report.prompt_overlap, report.scorer_errors) == (0.0, 0)
    assert np.isnan(report.oracle_value) or report.oracle_value == 1.0
    if name in STATEFUL:
        check_vectors(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*IDS} - STATEFUL))
def test_the_checker_of_vectors_passes(name, check_vectors):
    check_vectors(name)


PLAY = """
import hashlib, random, sys
import gymnasium
import numpy as np
import worldmtp.envs

before = repr(random.getstate()), repr(np.random.get_state())
for name in sys.argv[1:]:
    envs = gymnasium.make_vec(name, 4, pool_size=16)
    digest, rng = hashlib.blake2b(digest_size=8), np.random.default_rng(0)
    envs.reset(seed=5)
    for _ in range(30):
        obs, rewards, *_ = envs.step(rng.integers(1, envs.single_action_space.n, size=4))
        digest.update(obs["tokens"].tobytes() + rewards.tobytes())
    print(digest.hexdigest())
print((repr(random.getstate()), repr(np.random.get_state())) == before)
"""


@pytest.mark.parametrize(
    "names",
    [
        sorted(IN_EVERY_MODE | SAMPLED_BY_OTHERS),
        pytest.param(sorted({*IDS} - NEEDS_ARGUMENTS - IN_EVERY_MODE - SAMPLED_BY_OTHERS), marks=pytest.mark.slow),
    ],
    ids=["some", "others"],
)
def test_a_seed_gives_the_same_play_in_two_processes_and_leaves_the_global_generators_alone(names):
    """In fresh interpreters, whose hashes of texts differ; golden traces hold each id to one play in any of them."""
    command = [sys.executable, "-W", "error", "-c", PLAY, *names]
    played = [
        subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout.split()
        for seed in ("1", "2")
    ]
    assert played[0] == played[1]
    assert len(played[0]) == len(names) + 1
    assert played[0][-1] == "True"


@pytest.mark.parametrize("name", IDS)
def test_no_question_is_in_both_splits(name, kwargs_of):
    envs = gymnasium.make_vec(name, 1, **kwargs_of(name))
    assert envs.overlap() == 0.0
    prompts = {
        split: {example.prompt for example in envs.dataset.pool(split).examples} for split in ("train", "heldout")
    }
    if not isinstance(envs.task, TurnTask):  # openings of worlds may be alike; what they hide is not
        assert not prompts["train"] & prompts["heldout"]
