"""Which tokens are allowed, by hand, and what happens to those that are not. Ids: pad 0, EOS 1, a 2, b 3, = 4."""

import json
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from worldmtp.envs import VectorActionMask, check_vector_env
from worldmtp.envs.make import make_text_vec


@pytest.mark.parametrize(
    ("rules", "first", "third"),
    [
        ({}, [0, 1, 1, 1, 1], [0, 1, 1, 1, 1]),
        ({"min_new": 2}, [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]),
        ({"alphabet": "a="}, [0, 1, 1, 0, 1], [0, 1, 1, 0, 1]),
        ({"forbid_pad": False, "min_new": 1}, [1, 0, 1, 1, 1], [1, 1, 1, 1, 1]),
        ({"alphabet": "b", "min_new": 2}, [0, 0, 0, 1, 0], [0, 1, 0, 1, 0]),
    ],
)
def test_rules_by_hand(make_single, make_vector, words, rules, first, third):
    env = make_single(text_wrappers=[{"name": "action_mask", **rules}])
    envs = make_vector(1, wrap=lambda rows: VectorActionMask(rows, **rules))
    token = 3 if rules.get("alphabet") == "b" else 2
    _, info = env.reset(options={"prompts": words("abb")})
    _, infos = envs.reset(options={"prompts": words("abb")})
    assert info["action_mask"].tolist() == infos["action_mask"][0].tolist() == first
    assert info["action_mask"].dtype == infos["action_mask"].dtype == np.int8
    assert infos["_action_mask"].tolist() == [True]
    for _ in range(2):
        *_, info = env.step(token)
        *_, infos = envs.step(np.array([token]))
    assert info["action_mask"].tolist() == infos["action_mask"][0].tolist() == third


def test_a_rule_of_the_users_own(make_vector, words):
    """Never the same token twice in a row."""

    def no_repeat(obs):
        mask = np.ones((len(obs["length"]), 5), dtype=np.int8)
        mask[np.arange(len(mask)), obs["tokens"][np.arange(len(mask)), obs["length"][:, 0] - 1]] = 0
        return mask

    envs = make_vector(2, wrap=lambda rows: VectorActionMask(rows, no_repeat))
    _, infos = envs.reset(options={"prompts": words("a", "b")})
    assert infos["action_mask"].tolist() == [[0, 1, 1, 1, 0]] * 2  # prompts end with "=", and padding is never allowed
    *_, infos = envs.step(np.array([2, 3]))
    assert infos["action_mask"].tolist() == [[0, 1, 0, 1, 1], [0, 1, 1, 0, 1]]


@pytest.mark.parametrize("mode", ["same_step", "next_step", "disabled"])
def test_spaces_draw_by_the_mask(make_vector, mode):
    envs = make_vector(8, mode, lambda rows: VectorActionMask(rows, alphabet="b", min_new=2))
    _, infos = envs.reset(seed=0)
    envs.action_space.seed(0)
    drawn = []
    for _ in range(40):
        actions = envs.action_space.sample(tuple(infos["action_mask"]))
        *_, terminated, truncated, infos = envs.step(actions)
        if (terminated | truncated).any():
            final = infos["final_info"]
            drawn += [(final["text"][row], final["num_tokens"][row]) for row in np.flatnonzero(infos["_final_info"])]
    assert len(drawn) >= 8
    assert all(set(text) == {"b"} and num_tokens >= 3 for text, num_tokens in drawn)


def test_a_forbidden_action_is_an_error(make_single, make_vector, words):
    env = make_single(text_wrappers=[{"name": "action_mask", "min_new": 1}])
    env.reset(options={"prompts": words("a")})
    with pytest.raises(ValueError, match=r"action 1 \(EOS\) of row 0 is forbidden; 3 of 5 tokens are allowed there"):
        env.step(1)
    envs = make_vector(3, wrap=lambda rows: VectorActionMask(rows, alphabet="a"))
    envs.reset(options={"prompts": words("a", "b", "ab")})
    with pytest.raises(ValueError, match=r"action 3 \('b'\) of row 1 is forbidden; 2 of 5"):
        envs.step(np.array([2, 3, 2]))
    with pytest.raises(ValueError, match=r"action 0 \(padding\) of row 2"):
        envs.step(np.array([2, 2, 0]))
    with pytest.raises(ValueError, match=r"outside the vocabulary 0\.\.4"):  # the env's own words
        envs.step(np.array([2, 2, 9]))
    envs.step(np.array([2, 2, 1]))  # nothing was stepped before


@pytest.mark.parametrize("mode", ["next_step", "disabled"])
def test_rows_that_wait_may_be_sent_anything(make_vector, words, mode):
    envs = make_vector(2, mode, lambda rows: VectorActionMask(rows, min_new=1))
    envs.reset(options={"prompts": words("a", "b")})
    envs.step(np.array([2, 2]))
    *_, infos = envs.step(np.array([1, 2]))
    assert infos["action_mask"].tolist() == [[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]
    *_, infos = envs.step(np.array([0, 2]))
    waits = mode == "disabled"
    assert infos["action_mask"][0].tolist() == ([1, 1, 1, 1, 1] if waits else [0, 0, 1, 1, 1])
    if waits:
        _, infos = envs.reset(options={"reset_mask": np.array([True, False])})
        assert infos["action_mask"].tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]]


def test_the_reset_mask_is_seen_over_a_wrapper_that_takes_it(make_vector, words):
    """RecordEpisodeStatistics pops the mask out of the options."""
    envs = VectorActionMask(RecordEpisodeStatistics(make_vector(2, "disabled")), min_new=1)
    envs.reset(options={"prompts": words("a", "b")})
    envs.step(np.array([2, 2]))
    envs.step(np.array([1, 1]))
    _, infos = envs.reset(options={"reset_mask": np.array([True, False])})
    assert infos["action_mask"].tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forbid_pad": False}, "this mask allows everything"),
        ({"min_new": 4}, r"min_new=4 must be in 0\.\.3"),
        ({"alphabet": "xyz"}, "alphabet='xyz' leaves no token of CharTokenizer but EOS"),
        (
            {"rule": lambda obs: np.ones(5, dtype=bool)},
            r"bool of shape \(5,\); expected bool or int8 of shape \(2, 5\)",
        ),
        ({"rule": lambda obs: np.ones((2, 5))}, "the rule returned float64"),
        ({"rule": lambda obs: np.eye(2, 5, 1, dtype=bool), "min_new": 1}, r"allow no token in rows \[0\]"),
    ],
)
def test_impossible_rules_are_refused(make_vector, words, arguments, message):
    with pytest.raises(ValueError, match=message):
        VectorActionMask(make_vector(2, "disabled"), **arguments).reset(options={"prompts": words("a", "b")})


def test_environments_stay_what_they_are(make_single, make_vector):
    """Random actions are allowed where the user's rule allows all, which is what the checkers play."""

    def everything(obs):
        return np.ones((len(obs["length"]), 5), dtype=bool)

    def wrap(rows):
        return VectorActionMask(rows, everything, forbid_pad=False)

    check_vector_env(lambda num, mode: make_vector(num, mode, wrap))
    masked = {"name": "action_mask", "rule": everything, "forbid_pad": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make_single(text_wrappers=[masked]), skip_render_check=True)


def test_made_again_from_its_spec():
    masked = {"name": "action_mask", "min_new": 3}
    env = gymnasium.make("worldmtp/Copy-v0", pool_size=8, text_wrappers=[masked])
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    _, info = again.reset(seed=0)
    assert info["action_mask"][:3].tolist() == [0, 0, 1]


def test_snapshot_goes_through(make_vector, words):
    envs = VectorActionMask(make_vector(2, "disabled"), min_new=1)
    envs.reset(options={"prompts": words("a", "b")})
    envs.step(np.array([2, 2]))
    envs.step(np.array([1, 2]))
    state = json.loads(json.dumps(envs.state()))
    envs.reset()
    envs.load_state(state)
    envs.step(np.array([0, 1]))  # row 0 waits again
    with pytest.raises(TypeError, match="takes no snapshots; put it over VectorActionMask"):
        VectorActionMask(RecordEpisodeStatistics(make_vector(2, "disabled"))).state()


def test_where_a_turn_is_one_token_eos_can_be_forbidden():
    rules = {"name": "action_mask", "alphabet": "ldru", "forbid_eos": True}
    envs = make_text_vec("worldmtp/FrozenLake-v0", 3, wrappers=[rules], pool_size=4, max_turn=1)
    _, infos = envs.reset(seed=0)
    letters = envs.tokenizer.encode("ldru")
    assert [np.flatnonzero(mask).tolist() for mask in infos["action_mask"]] == [sorted(letters)] * 3
    *_, infos = envs.step(np.array(envs.tokenizer.encode("dru")))
    assert infos["reply"].tolist() == ["10", "01", "00"]
    assert [np.flatnonzero(mask).tolist() for mask in infos["action_mask"]] == [sorted(letters)] * 3
    with pytest.raises(ValueError, match=r"action 1 \(EOS\) of row 1 is forbidden; 4 of"):
        envs.step(np.array([letters[0], 1, letters[0]]))
    for env_id, kwargs in (("worldmtp/FrozenLake-v0", {"max_turn": None}), ("worldmtp/Copy-v0", {})):
        with pytest.raises(ValueError, match="forbid_eos=True needs max_turn"):
            make_text_vec(env_id, 1, wrappers=["action_mask", rules], **kwargs)
