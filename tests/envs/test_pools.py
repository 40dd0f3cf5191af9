"""The pool of an environment: its seed, and the questions that it must not have."""

import numpy as np
import pytest

from worldmtp.envs import TextGenVectorEnv


def make(**kwargs):
    options = {"task": "Copy", "task_kwargs": {"alphabet": "abc", "min_length": 4, "max_length": 4}}
    return TextGenVectorEnv(4, **options, max_prompt=6, max_new=6, pool_size=40, **kwargs)


def questions(env):
    return {example.key for example in env.dataset.pool("train").examples}


def test_the_seed_of_a_pool_decides_it():
    assert questions(make()) == questions(make(pool_seed=0))
    assert questions(make(pool_seed=1)) != questions(make(pool_seed=0))
    chosen = make()
    chosen.dataset.choose_pools(1)
    assert questions(chosen) == questions(make(pool_seed=1))


def test_what_is_excluded_is_never_asked():
    env = make()
    shown = env.examples("train", 30, 0, "demonstrations")
    env.dataset.choose_pools(0, [example.key for example in shown])
    asked = set()
    env.reset(seed=0)
    for _ in range(20):
        _, infos = env.reset()
        asked |= set(infos["example_key"])
    assert len(asked) > 20
    assert not asked & {example.key for example in shown}


def test_pools_are_chosen_before_any_is_drawn():
    env = make()
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match=r"the pools of \['train'\] are drawn already; choose them before any reset"):
        env.dataset.choose_pools(1)
    assert np.array_equal(env.dataset.pool("train").prompts, make().dataset.pool("train").prompts)
