"""The attention mask beside the observation, by hand in each autoreset mode. Ids: pad 0, EOS 1, a 2, b 3, = 4."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector.utils import batch_space

from worldmtp.envs import Autoreset, VectorAttentionMask


def test_of_one_text_by_hand(make_single, words):
    env = make_single(text_wrappers=["attention_mask"])
    obs, _ = env.reset(options={"prompts": words("ab")})
    assert obs["attention_mask"].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert obs["attention_mask"].dtype == np.int8
    obs, *_ = env.step(0)  # padding that was written is text
    assert obs["attention_mask"].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert env.observation_space.contains(obs)


@pytest.mark.parametrize("mode", ["same_step", "next_step", "disabled"])
def test_of_ended_rows(make_vector, words, mode):
    envs = make_vector(2, mode, VectorAttentionMask)
    envs.reset(seed=0, options={"prompts": words("a", "ab")})
    obs, _, _, _, infos = envs.step(np.array([1, 2]))
    ended = infos["final_obs"][0] if mode == "same_step" else {key: value[0] for key, value in obs.items()}
    assert ended["attention_mask"].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]  # "a=" and EOS
    assert obs["attention_mask"][1].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]  # "ab=" and a
    assert (obs["attention_mask"].sum(axis=1) == obs["length"][:, 0]).all()
    assert envs.observation_space.contains(obs)
    assert envs.observation_space == batch_space(envs.single_observation_space, 2)


def test_single_env_passes_gymnasiums_check(make_single):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make_single(text_wrappers=["attention_mask"]), skip_render_check=True)


def test_made_again_from_its_spec():
    env = gymnasium.make("worldmtp/Copy-v0", pool_size=8, text_wrappers=["attention_mask"])
    spec = gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json())
    again = gymnasium.make(spec)
    assert "attention_mask" in again.observation_space.spaces
    assert again.observation_space == env.observation_space


def test_rows_that_reset_themselves_are_refused(make_vector):
    with pytest.raises(ValueError, match=r"would not see their ends; put it under the autoreset"):
        VectorAttentionMask(make_vector(2, "same_step"))
    with pytest.raises(ValueError, match=r"would not see their ends; put it under the autoreset"):
        Autoreset(make_vector(2, "next_step"), "next_step")


def test_other_environments_are_refused():
    with pytest.raises(TypeError, match="is not a TextGenVectorEnv"):
        VectorAttentionMask(gymnasium.make_vec("CartPole-v1", num_envs=2))


def test_snapshot_goes_through(make_vector, words):
    envs = VectorAttentionMask(make_vector(1, "disabled"))
    envs.reset(seed=0, options={"prompts": words("ab")})
    state = envs.state()
    envs.step(np.array([2]))
    assert envs.load_state(state)["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]
