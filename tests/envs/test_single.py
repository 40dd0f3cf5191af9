"""The single env: gymnasium's checker without a warning, an episode by hand, and its own borders."""

import warnings

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from worldmtp.envs import TextGenEnv, TextTurnEnv


def test_gymnasiums_checker_has_nothing_to_say(make_single):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make_single(), skip_render_check=True)  # render modes need a spec: test_registry


def test_an_episode_by_hand(make_single, words):
    env = make_single(render_mode="ansi")
    assert env.render() is None
    obs, info = env.reset(seed=0, options={"prompts": words("ab")})
    assert obs["tokens"].tolist() == [2, 3, 4, 0, 0, 0, 0, 0]
    assert (obs["length"].tolist(), obs["prompt_length"].tolist()) == ([3], [3])
    assert (info["prompt_text"], info["group"]) == ("ab=", 0)
    assert env.step(2)[1:] == (0.0, False, False, {})
    env.step(3)
    assert env.render() == "ab=ab"
    obs, reward, terminated, truncated, info = env.step(np.int64(1))
    assert obs["tokens"].tolist() == [2, 3, 4, 2, 3, 1, 0, 0]
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info == {
        "text": "ab",
        "score": 1.0,
        "exact": True,
        "components": {"length": 2.0},
        "reason": "ok",
        "num_tokens": 3,
        "prompt_text": "ab=",
        "example_key": words("ab")[0].key,
        "group": 0,
    }
    assert env.render() == "ab=ab    [score 1.00]"
    with pytest.raises(ResetNeeded, match="call reset before step"):
        env.step(2)


def test_the_split_holds_and_prompts_can_be_named(make_single):
    env = make_single()
    heldout = env.dataset.pool("heldout").examples
    _, info = env.reset(options={"split": "heldout", "indices": [3]})
    assert info["prompt_text"] == heldout[3].prompt
    _, info = env.reset()
    assert info["prompt_text"] in {example.prompt for example in heldout}
    _, info = env.reset(options={"prompts": [heldout[5].prompt]})
    assert info["prompt_text"] == heldout[5].prompt
    assert env.overlap() == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"indices": [0, 1]}, "2 prompts are named for 1 groups of 1 rows"),
        ({"indices": [32]}, r"of the pool, 0\.\.31"),
        ({"group_size": 2}, "does not divide num_envs=1"),
    ],
)
def test_impossible_options_are_refused(make_single, options, message):
    with pytest.raises(ValueError, match=message):
        make_single().reset(options=options)


def test_actions_outside_the_vocabulary_are_refused(make_single):
    env = make_single()
    with pytest.raises(ResetNeeded):
        env.step(2)
    env.reset(seed=0)
    for action in (5, -1, 2**63, 2**70, np.int64(5)):
        with pytest.raises(ValueError, match=r"outside the vocabulary 0\.\.4"):
            env.step(action)


def test_examples_are_distinct_and_their_answers_fit(make_single):
    env = make_single()
    examples = env.examples("train", 4, seed=0)
    assert len({example.prompt for example in examples}) == 4
    assert all(example.answer + "=" == example.prompt for example in examples)


@pytest.mark.parametrize(
    ("action", "told"),
    [
        (3.0, r"3\.0 is a float \(float64, shape \(\)\)"),
        (torch.tensor(3.0), r"tensor\(3\.\) is a Tensor \(float32, shape \(\)\)"),
        (np.array([3]), r"array\(\[3\]\) is a ndarray \(int64, shape \(1,\)\)"),
        (torch.tensor([3]), r"tensor\(\[3\]\) is a Tensor \(int64, shape \(1,\)\)"),
        ([3], r"\[3\] is a list"),
        ("3", r"'3' is a str"),
        (None, r"None is a NoneType"),
        (True, r"True is a bool"),
        (np.bool_(True), r"np\.True_ is a bool"),
        (torch.tensor(True), r"tensor\(True\) is a Tensor \(bool"),
    ],
)
@pytest.mark.parametrize("wrappers", [[], ["action_mask"]], ids=["bare", "masked"])
def test_actions_of_another_type_are_told_so(make_single, wrappers, action, told):
    env = make_single(text_wrappers=wrappers)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"action {told}.*; expected one integer, the id of a token"):
        env.step(action)


@pytest.mark.parametrize("action", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_one_integer_is_a_token_whatever_holds_it(make_single, action):
    env = make_single()
    obs, _ = env.reset(seed=0)
    assert env.step(action)[0]["tokens"][obs["length"][0]] == 3


@pytest.mark.parametrize("action", [3, np.array(3), torch.tensor(3)])
def test_a_mask_sees_the_token_whatever_holds_it(make_single, action):
    env = make_single(text_wrappers=[{"name": "action_mask", "alphabet": "a"}])  # 3 is b
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action 3 \('b'\) of row 0 is forbidden"):
        env.step(action)


def test_what_is_written_into_metadata_stays_in_the_environment(make_single):
    for env in (make_single(), TextTurnEnv("Pig")):
        env.metadata["autoreset_mode"] = "mine"
    for untouched in (make_single(), TextGenEnv, TextTurnEnv):
        assert untouched.metadata == {"render_modes": ["ansi"], "render_fps": 4}


def test_rows_batched_by_gymnasium_know_their_own_autoreset_mode(make_single):
    """Gymnasium 1.2 and 1.3 wrote the last one's mode into the class, which all read."""
    modes = AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
    first, second = (SyncVectorEnv([make_single] * 2, autoreset_mode=mode) for mode in modes)
    assert (first.metadata["autoreset_mode"], second.metadata["autoreset_mode"]) == modes
    assert "autoreset_mode" not in TextGenEnv.metadata
