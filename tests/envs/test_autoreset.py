"""The two modes in which rows reset themselves, by a wrapper around the kernel."""

import gymnasium
import numpy as np
import pytest

from worldmtp.envs import Autoreset, TextGenVectorEnv


def play(envs, prompts, columns):
    """Reset to the prompts, then step through columns of actions; all that was returned."""
    envs.reset(seed=0, options={"prompts": prompts})
    return [envs.step(np.array(column)) for column in columns]


def test_same_step_shows_the_new_prompt_and_keeps_the_end(make_vector, words):
    envs = make_vector(2)
    steps = play(envs, words("a", "b"), [[2, 3], [1, 3]])
    obs, rewards, terminated, _, infos = steps[1]
    assert rewards.tolist() == [1.0, 0.0]
    assert terminated.tolist() == [True, False]
    assert infos["_final_obs"].tolist() == [True, False]
    assert infos["final_obs"][0]["tokens"].tolist() == [2, 4, 2, 1, 0, 0, 0, 0]
    assert (infos["final_obs"][0]["length"].tolist(), infos["final_obs"][1]) == ([4], None)
    assert infos["_prompt_text"].tolist() == [True, False]
    assert infos["group"].tolist() == [2, 0]  # 0 and 1 were given at reset; where the mask is false stands 0
    assert obs["length"][0] == obs["prompt_length"][0]
    prompt = envs.tokenizer.decode(obs["tokens"][0])
    assert infos["prompt_text"][0] == prompt
    assert obs["tokens"][1].tolist() == [3, 4, 3, 3, 0, 0, 0, 0]


def test_next_step_shows_the_end_and_then_the_new_prompt(make_vector, words):
    steps = play(make_vector(2, "next_step"), words("a", "b"), [[2, 3], [1, 3], [3, 3]])
    assert steps[1][0]["tokens"][0].tolist() == [2, 4, 2, 1, 0, 0, 0, 0]
    assert steps[1][4]["final_info"]["text"][0] == "a"
    assert "final_obs" not in steps[1][4]
    obs, rewards, terminated, truncated, infos = steps[2]
    assert obs["length"][0] == obs["prompt_length"][0]
    assert (rewards[0], terminated[0], truncated[0]) == (0.0, False, False)
    assert infos["_prompt_text"].tolist() == [True, False]
    assert obs["tokens"][1].tolist() == [3, 4, 3, 3, 3, 0, 0, 0]


@pytest.mark.parametrize("mode", ["same_step", "next_step"])
def test_rows_that_reset_themselves_share_no_prompts(make_vector, mode):
    envs = make_vector(4, mode)
    with pytest.raises(ValueError, match="group_size=2 needs autoreset_mode='disabled'"):
        envs.reset(seed=0, options={"group_size": 2})
    with pytest.raises(ValueError, match="group_size=2 needs autoreset_mode='disabled'"):
        make_vector(4, mode, group_size=2)


@pytest.mark.parametrize("mode", ["same_step", "next_step"])
def test_no_row_that_resets_itself_is_told_to_stand_still(make_vector, mode):
    """In the same step it would for ever: it does not end, so nobody resets it."""
    envs = make_vector(2, mode)
    envs.reset(seed=0)
    options = {"reset_mask": np.array([True, False])}
    with pytest.raises(ValueError, match="ends_others=True needs autoreset_mode='disabled'"):
        envs.reset(options=options | {"ends_others": True})
    envs.reset(options=options | {"ends_others": False})


def test_the_kernel_knows_one_autoreset_mode():
    copy = gymnasium.spec("worldmtp/Copy-v0").kwargs
    with pytest.raises(ValueError, match="rows of a TextGenVectorEnv stand still when they end"):
        TextGenVectorEnv(2, autoreset_mode="same_step", **copy)
    with pytest.raises(ValueError, match="'disabled' is the environment as it is"):
        Autoreset(TextGenVectorEnv(2, **copy), "disabled")


@pytest.mark.parametrize("mode", ["same_step", "next_step"])
def test_views_of_the_rows_give_the_same_episodes(make_vector, words, mode):
    """Ended texts are copied out before their rows begin anew."""
    envs, views = make_vector(2, mode), make_vector(2, mode)
    views.unwrapped.copy = False
    for one in (envs, views):
        one.reset(seed=0, options={"prompts": words("a", "bb")})
    num_final = 0
    for column in np.random.default_rng(0).integers(5, size=(20, 2)):
        (obs, *seen), (shown, *other) = envs.step(column), views.step(column)
        assert all((obs[key] == shown[key]).all() for key in obs)
        assert [array.tolist() for array in seen[:3]] == [array.tolist() for array in other[:3]]
        for row in np.flatnonzero(seen[3].get("_final_obs", [])):
            one, two = (infos["final_obs"][row] for infos in (seen[3], other[3]))
            assert all((one[key] == two[key]).all() for key in one)
            num_final += 1
    assert (num_final > 4) == (mode == "same_step")
