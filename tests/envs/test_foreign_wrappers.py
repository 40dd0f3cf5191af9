"""Wrappers and checkers that are not ours, over and under what is. Ids: pad 0, EOS 1, a 2, b 3, = 4."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import FlattenObservation
from gymnasium.wrappers import RecordEpisodeStatistics as RecordOne
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from worldmtp.envs import (
    VectorActionMask,
    VectorAttentionMask,
    VectorEpisodeRecorder,
    VectorNumericInfos,
    VectorPotentialShaping,
    read_episodes,
)
from worldmtp.envs.catalogue import BUILTIN_TASKS
from worldmtp.envs.registry import env_id

ALL_IDS = [env_id(name) for name in [*BUILTIN_TASKS, "ReasoningGym"]]


def nothing(example, text):
    return 0.0


@pytest.mark.parametrize("mode", ["same_step", "next_step", "disabled"])
@pytest.mark.parametrize("statistics_are", ["over", "under"])
def test_statistics_with_all_wrappers(make_vector, words, tmp_path, mode, statistics_are):
    def wrap(rows):
        rows = RecordEpisodeStatistics(rows) if statistics_are == "under" else rows
        rows = VectorEpisodeRecorder(rows, tmp_path / "episodes.jsonl")
        return VectorAttentionMask(VectorActionMask(VectorPotentialShaping(rows, nothing, gamma=1.0), min_new=1))

    envs = make_vector(2, mode, wrap)
    if statistics_are == "over":
        envs = RecordEpisodeStatistics(envs)
    envs.reset(seed=0, options={"prompts": words("a", "bb")})
    envs.step(np.array([2, 3]))
    obs, *_, infos = envs.step(np.array([1, 3]))
    assert infos["episode"]["r"].tolist() == [1.0, 0.0]
    assert infos["episode"]["l"].tolist() == [2, 0]
    assert {"action_mask", "shaping", "final_info"} <= infos.keys()
    assert obs["attention_mask"].shape == (2, 8)
    assert [line["ids"] for line in read_episodes(tmp_path / "episodes.jsonl")] == [[2, 1]]


def test_single_wrappers_over_each_other(make_single, words, tmp_path):
    wrappers = [
        {"name": "episode_recorder", "path": tmp_path / "episodes.jsonl"},
        {"name": "potential_shaping", "potential": nothing, "gamma": 1.0},
        "action_mask",
        "attention_mask",
    ]
    env = RecordOne(make_single(text_wrappers=wrappers))
    env.reset(options={"prompts": words("a")})
    env.step(2)
    obs, reward, terminated, _, info = env.step(1)
    assert (reward, terminated, info["episode"]["r"], info["episode"]["l"]) == (1.0, True, 1.0, 2)
    assert obs["attention_mask"].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_flattened_observations(make_single, words):
    env = FlattenObservation(make_single(text_wrappers=["attention_mask"]))
    obs, _ = env.reset(options={"prompts": words("ab")})
    # keys in alphabetical order: attention_mask, length, prompt_length, tokens
    assert obs.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 3, 3, 2, 3, 4, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("mode", ["same_step", "next_step", "disabled"])
def test_tensors(make_vector, mode):
    pytest.importorskip("array_api_compat", reason="gymnasium's NumpyToTorch needs it: the test extra")
    from gymnasium.wrappers.vector import NumpyToTorch

    envs = NumpyToTorch(VectorNumericInfos(make_vector(2, mode, VectorAttentionMask)))
    obs, infos = envs.reset(seed=0)
    assert obs["tokens"].dtype == torch.int64
    assert infos["group"].tolist() == [0, 1]
    prompts = obs["tokens"].clone()
    obs, rewards, terminated, _, infos = envs.step(torch.tensor([1, 2]))
    assert rewards.dtype == torch.float64
    assert terminated.tolist() == [True, False]
    assert infos["final_info"]["num_tokens"].tolist() == [1, 0]
    assert infos["final_info"]["_num_tokens"].tolist() == [True, False]
    assert "text" not in infos["final_info"]
    if mode == "same_step":
        length = int((prompts[0] != 0).sum())
        assert infos["_final_obs"].tolist() == [True, False]
        assert infos["final_obs"]["length"].tolist() == [[length + 1], [0]]
        assert infos["final_obs"]["tokens"][0, length] == 1


def test_what_infos_keep_is_what_was_there(make_vector, words):
    envs, plain = VectorNumericInfos(make_vector(2)), make_vector(2)
    for one in (envs, plain):
        one.reset(seed=0, options={"prompts": words("a", "b")})
    kept, infos = envs.step(np.array([1, 1]))[4], plain.step(np.array([1, 1]))[4]
    assert set(infos) - set(kept) == {"prompt_text", "_prompt_text", "example_key", "_example_key"}
    assert kept["group"].tolist() == infos["group"].tolist()
    assert kept["final_obs"]["tokens"].tolist() == [obs["tokens"].tolist() for obs in infos["final_obs"]]


@pytest.mark.parametrize("name", ALL_IDS)
def test_stable_baselines3_accepts_every_id(name, kwargs_of):
    """Its check warns of spaces that it cannot use; there is no such warning here."""
    env_checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="needs the test extra")
    env_checker.check_env(gymnasium.make(name, **kwargs_of(name, pool_size=8)), warn=True)


def test_stable_baselines3_would_warn():
    """Of what text environments must not have: a space that its networks cannot read."""
    env_checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="needs the test extra")
    env = gymnasium.make("worldmtp/Copy-v0", pool_size=8).unwrapped
    env.observation_space = gymnasium.spaces.Dict(env.observation_space.spaces | {"more": gymnasium.spaces.Dict()})
    with pytest.warns(UserWarning, match="Nested observation spaces are not supported"), pytest.raises(AssertionError):
        env_checker.check_env(env, warn=True)


def test_no_id_was_left_out(registered_ids):
    unchecked = set(registered_ids) - set(ALL_IDS)  # those that other tests have registered
    assert set(ALL_IDS) <= set(registered_ids)
    assert all(gymnasium.spec(name).kwargs["task"] not in BUILTIN_TASKS for name in unchecked)
