"""``reset_mask``, and with ``ends_others`` rows outside the mask stand still, as if they had ended."""

import numpy as np


def test_reset_mask_resets_these_rows_only(make_vector, words):
    envs = make_vector(3, "disabled")
    envs.reset(seed=0, options={"prompts": words("a", "b", "ab")})
    envs.step(np.array([1, 3, 3]))
    obs, infos = envs.reset(options={"reset_mask": np.array([True, False, False]), "prompts": words("bb")})
    assert obs["tokens"][:, :4].tolist() == [[3, 3, 4, 0], [3, 4, 3, 0], [2, 3, 4, 3]]
    assert infos["_prompt_text"].tolist() == [True, False, False]
    assert infos["group"][0] == 3


def test_rows_outside_the_mask_stand_still(make_vector, words):
    """Begun or not, they act no more and pay nothing, until a reset begins them again."""
    envs = make_vector(3, "disabled")
    envs.reset(seed=0, options={"prompts": words("a", "b", "ab")})
    envs.step(np.array([3, 3, 3]))
    mask = np.array([False, True, False])
    obs, _ = envs.reset(options={"reset_mask": mask, "prompts": words("bb"), "ends_others": True})
    assert obs["tokens"][:, :4].tolist() == [[2, 4, 3, 0], [3, 3, 4, 0], [2, 3, 4, 3]]
    assert envs.done.tolist() == [True, False, True]
    obs, rewards, terminated, truncated, infos = envs.step(np.array([1, 1, 1]))
    assert obs["length"][:, 0].tolist() == [3, 4, 4]
    assert (terminated | truncated).tolist() == [False, True, False]
    assert rewards[[0, 2]].tolist() == [0, 0]
    assert infos["_final_info"].tolist() == [False, True, False]
    envs.reset(options={"ends_others": True})  # outside of no mask is nobody
    assert not envs.done.any()


def test_without_it_they_go_on(make_vector, words):
    envs = make_vector(2, "disabled")
    envs.reset(seed=0, options={"prompts": words("a", "b")})
    envs.reset(options={"reset_mask": np.array([True, False]), "prompts": words("b")})
    assert envs.step(np.array([3, 3]))[0]["length"][:, 0].tolist() == [3, 3]
