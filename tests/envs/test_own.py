"""A user's own gymnasium environment: what is asked of it, its prompts and scores, and rows of it side by side."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from worldmtp.envs import TextGenEnv, TextGenVectorEnv, TextVectorEnv, check_text_env, check_vector_env, make_tokenizer
from worldmtp.envs.infos import batch_infos
from worldmtp.envs.own import OwnTextEnv, own_text_envs
from worldmtp.envs.seeded_task import SeededTask
from worldmtp.envs.stacked import StackedVectorEnv
from worldmtp.envs.token_contract import check_contract

REVERSE = {"task": "Reverse", "tokenizer": "char:abcdefghij=", "max_prompt": 9, "max_new": 9, "pool_size": 64}
NO_IDS = np.zeros(0, dtype=np.int64)


class Twins(gymnasium.Env):
    """Two letters and "="; each of them in its place pays a half at once. No class of the package is a parent."""

    def __init__(self):
        self.tokenizer, self.max_new = make_tokenizer("char:abcdefghijklmnopqrst="), 4
        box = spaces.Box(0, 22, (7,), np.int64)
        one = spaces.Box(0, 7, (1,), np.int64)
        self.observation_space = spaces.Dict(tokens=box, length=one, prompt_length=one)
        self.action_space = spaces.Discrete(23)
        self.ids, self.num_prompt = [], 3

    def observation(self):
        tokens = np.zeros(7, dtype=np.int64)
        tokens[: len(self.ids)] = self.ids
        return {"tokens": tokens, "length": np.array([len(self.ids)]), "prompt_length": np.array([self.num_prompt])}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.asked = self.np_random.integers(2, 22, size=2).tolist()
        self.ids = [*self.asked, 22]
        return self.observation(), {"answer": self.tokenizer.decode(self.asked)}

    def step(self, action):
        place = len(self.ids) - 3
        self.ids.append(int(action))
        is_right = place < 2 and int(action) == self.asked[place]
        terminated = int(action) == 1
        return self.observation(), 0.5 * is_right, terminated, place == 3 and not terminated, {}


def twins(num_envs=3, **kwargs):
    return StackedVectorEnv(Twins, num_envs, pool_size=64, **kwargs)


def test_prompts_are_named_by_seeds_and_split_by_their_hash():
    (env,) = own_text_envs(Twins, pool_size=64)
    train, heldout = (env.examples(split, 20, 0) for split in ("train", "heldout"))
    assert len({example.prompt for example in train} | {example.prompt for example in heldout}) == 40
    assert env.overlap() == 0.0
    for example in train:
        obs, info = Twins().reset(seed=example.meta["seed"])
        assert env.tokenizer.decode(obs["tokens"][:3]) == example.prompt
        assert info["answer"] == example.answer == example.prompt[:2]


def test_a_text_is_worth_what_the_environment_pays_for_it():
    task = SeededTask(Twins(), make_tokenizer("char:abcdefghijklmnopqrst="))
    example = task.sample(np.random.default_rng(0), "train")
    first, second = example.answer
    other = next(letter for letter in "abc" if letter not in (first, second))
    assert task.score(example, example.answer, NO_IDS).value == 1.0
    assert task.score(example, example.answer, NO_IDS).exact
    assert task.score(example, first, NO_IDS).value == 0.5
    assert task.score(example, other + second, NO_IDS).value == 0.5
    assert task.score(example, "", NO_IDS).value == 0.0
    assert task.score(example, "Z", NO_IDS).reason == "unwritable"
    # Tokens as they were written count, not the text.
    assert task.score(example, "", np.array([*Twins().tokenizer.encode(example.answer), 1])).value == 1.0


def test_the_last_info_is_filled_in():
    (env,) = own_text_envs(Twins, pool_size=64)
    (example,) = env.examples("heldout", 1, 0)
    env.reset(options={"split": "heldout", "prompts": [example]})
    letter = env.tokenizer.encode(example.answer)[0]
    env.step(letter)
    _, reward, terminated, truncated, info = env.step(1)
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert info == {
        "text": example.answer[0],
        "score": 0.5,
        "exact": False,
        "components": {},
        "reason": "ok",
        "num_tokens": 2,
        "prompt_text": example.prompt,
        "example_key": example.key,
        "group": 0,
    }


def test_single_environment_passes_the_check():
    (env,) = own_text_envs(Twins, pool_size=64)
    assert check_text_env(env, 20).oracle_value == 1.0


def test_rows_pass_the_check_in_all_modes():
    check_vector_env(lambda num_envs, mode: twins(num_envs, autoreset_mode=mode))
    assert isinstance(twins(), TextVectorEnv)


def test_rows_of_our_environment_are_the_vector_environment():
    """Side by side, single environments tell what TextGenVectorEnv tells, given the same indices of the pool."""
    stacked = StackedVectorEnv(lambda: TextGenEnv(**REVERSE), 4, autoreset_mode="disabled")
    whole = TextGenVectorEnv(4, autoreset_mode="disabled", **REVERSE)
    rng = np.random.default_rng(0)
    options = {"group_size": 2, "indices": [5, 7], "split": "heldout"}
    for _ in range(2):
        returned, expected = (envs.reset(options=options) for envs in (stacked, whole))
        assert_equal(returned, expected)
        for _ in range(9):
            actions = rng.integers(1, 13, size=4)
            returned, expected = stacked.step(actions), whole.step(actions)
            assert_equal(returned, expected)


def assert_equal(seen, expected):
    if isinstance(expected, dict):
        assert seen.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal(seen[key], value)
    elif isinstance(expected, tuple):
        assert len(seen) == len(expected)
        for one, other in zip(seen, expected, strict=True):
            assert_equal(one, other)
    else:
        np.testing.assert_array_equal(seen, expected)


def test_groups_share_a_prompt():
    envs = twins(6, autoreset_mode="disabled", group_size=2)
    obs, infos = envs.reset(seed=0)
    assert (obs["tokens"][::2] == obs["tokens"][1::2]).all()
    assert infos["group"].tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match=r"group_size=2 needs autoreset_mode='disabled'"):
        twins(4, group_size=2)
    with pytest.raises(ValueError, match="whole groups of 2 rows"):
        envs.reset(options={"reset_mask": np.array([True] + [False] * 5)})
    with pytest.raises(ValueError, match="2 prompts are named for 3 groups"):
        envs.reset(options={"indices": [0, 1]})
    with pytest.raises(ValueError, match=r"indices of the pool, 0\.\.63"):
        envs.reset(options={"indices": [0, 1, 64]})


def test_a_state_goes_on_with_the_same_prompts():
    envs, again = twins(), twins()
    envs.reset(seed=4)
    state = envs.state()
    expected = [envs.reset()[0]["tokens"] for _ in range(2)]
    again.load_state(state)
    with pytest.raises(ResetNeeded):
        again.step(np.ones(3, dtype=np.int64))
    for tokens in expected:
        np.testing.assert_array_equal(again.reset()[0]["tokens"], tokens)


def test_no_state_within_a_text_or_of_other_prompts():
    envs = twins(autoreset_mode="disabled")
    envs.reset(seed=0)
    envs.step(np.array([2, 2, 1]))
    with pytest.raises(ValueError, match="a text is under way"):
        envs.state()
    envs.step(np.array([1, 1, 1]))
    other = StackedVectorEnv(Twins, 3, pool_size=32)
    with pytest.raises(ValueError, match="does not belong to this env"):
        other.load_state(envs.state())


def test_wrong_calls():
    with pytest.raises(ValueError, match="num_envs=0 must be at least 1"):
        twins(0)
    envs = twins()
    with pytest.raises(ResetNeeded, match="call reset before step"):
        envs.step(np.ones(3, dtype=np.int64))
    with pytest.raises(ResetNeeded, match="the first reset must be of all rows"):
        envs.reset(options={"reset_mask": np.array([True, False, False])})
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"3 integers, got int64 of shape \(2,\)"):
        envs.step(np.ones(2, dtype=np.int64))


def test_a_refused_reset_changes_nothing():
    (env,) = own_text_envs(Twins, pool_size=64)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"indices of the pool, 0\.\.63"):
        env.reset(options={"split": "heldout", "indices": [64]})
    train = {example.prompt for example in env.problem.pool("train").examples}
    assert {env.reset()[1]["prompt_text"] for _ in range(5)} <= train


class Reuses(Twins):
    """One set of arrays for all observations, and a running count in every info, reset included."""

    def __init__(self):
        super().__init__()
        self.buffer = super().observation()

    def observation(self):
        for key, value in super().observation().items():
            self.buffer[key][:] = value
        return self.buffer

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        return obs, info | {"so_far": 0}

    def step(self, action):
        *step, info = super().step(action)
        return *step, info | {"so_far": len(self.ids) - 3}


def test_rows_do_not_share_infos_with_rows_that_reset_nor_buffers_with_the_user():
    envs = StackedVectorEnv(Reuses, 3, pool_size=64, autoreset_mode="same_step")
    envs.reset(seed=0)
    envs.step(np.array([2, 2, 2]))
    obs, _, terminated, _, infos = envs.step(np.array([1, 2, 2]))
    assert terminated.tolist() == [True, False, False]
    assert (infos["so_far"].tolist(), infos["_so_far"].tolist()) == ([0, 2, 2], [True] * 3)
    assert infos["final_obs"][0]["tokens"][3:5].tolist() == [2, 1]
    assert infos["final_obs"][0]["length"].tolist() == [5]
    assert obs["length"][:, 0].tolist() == [3, 5, 5]


def test_a_column_of_mixed_numbers_is_of_floats_and_of_mixed_things_of_objects():
    infos = batch_infos([{"x": 0, "y": 1, "z": np.zeros(1)}, {"x": 0.5, "y": "two", "z": np.zeros(2)}], np.arange(2), 2)
    assert (infos["x"].dtype, infos["x"].tolist()) == (np.float64, [0.0, 0.5])
    assert (infos["y"].dtype, infos["y"].tolist()) == (object, [1, "two"])
    assert [value.shape for value in infos["z"]] == [(1,), (2,)]


class NoTokenizer(Twins):
    tokenizer = property(lambda self: "char", lambda self, value: None)


class FloatTokens(Twins):
    def __init__(self):
        super().__init__()
        self.observation_space["tokens"] = spaces.Box(0, 22, (7,), np.float32)


class OneKeyShort(Twins):
    def __init__(self):
        super().__init__()
        del self.observation_space.spaces["prompt_length"]


class SmallVocabulary(Twins):
    def __init__(self):
        super().__init__()
        self.action_space = spaces.Discrete(5)


class NoRoom(Twins):
    def __init__(self):
        super().__init__()
        self.max_new = 7


class NoLimit(Twins):
    max_new = property(lambda self: None, lambda self, value: None)


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        (NoTokenizer, r"NoTokenizer\.tokenizer is 'char', which lacks vocab_size, pad_id, eos_id, decode, spec;"),
        (FloatTokens, r"FloatTokens\.observation_space is .*expected a Dict of int64 Boxes"),
        (OneKeyShort, r"OneKeyShort\.observation_space is .*expected a Dict of int64 Boxes"),
        (SmallVocabulary, r"action_space is Discrete\(5\); expected Discrete\(23\), the tokenizer's vocabulary"),
        (NoRoom, r"max_new is 7 with 7 tokens a row"),
        (NoLimit, r"max_new is None with 7 tokens a row; expected the most steps of an episode"),
    ],
    ids=["tokenizer", "dtype", "keys", "vocabulary", "max_new", "no max_new"],
)
def test_what_is_wrong_is_said(faulty, message):
    with pytest.raises(ValueError, match=message):
        check_contract(faulty())


class Forgetful(Twins):
    def step(self, action):
        obs, *rest = super().step(action)
        self.ids[-1] = obs["tokens"][len(self.ids) - 1] = 2
        return obs, *rest


def test_a_planted_fault_is_caught():
    with pytest.raises(AssertionError):
        check_vector_env(
            lambda num_envs, mode: StackedVectorEnv(Forgetful, num_envs, autoreset_mode=mode, pool_size=64)
        )


class Costly(TextGenEnv):
    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        if terminated or truncated:
            reward = info["score"] = reward / 2
        return obs, reward, terminated, truncated, info


def test_a_subclass_of_ours_keeps_its_prompts_and_pays_its_own_way():
    envs = StackedVectorEnv(lambda: Costly(**REVERSE), 2, autoreset_mode="disabled")
    assert envs.problem is envs.envs[1].problem
    (example,) = envs.examples("heldout", 1, 0)
    envs.reset(options={"split": "heldout", "prompts": [example, example]})
    for token in [*envs.tokenizer.encode(example.answer), 1]:
        _, rewards, terminated, _, infos = envs.step(np.array([token, 1]))
    assert terminated.tolist() == [True, False]
    assert rewards.tolist() == [0.5, 0.0]
    assert infos["final_info"]["score"].tolist() == [0.5, 0.0]
    assert isinstance(envs.envs[0], OwnTextEnv)


def test_the_environment_that_tells_prompts_is_closed_once_with_the_rows():
    closed = []

    class Closing(Twins):
        def close(self):
            closed.append(self)

    envs = StackedVectorEnv(Closing, 3, pool_size=16)
    envs.close()
    assert len(closed) == 4
    assert {*closed} == {envs.task.env, *(env.env for env in envs.envs)}


class Tenths(Twins):
    """Pays ten tenths of float32, 1.0000000149, for EOS, and nothing else."""

    def step(self, action):
        obs, _, terminated, truncated, info = super().step(action)
        return obs, 10 * float(np.float32(0.1)) if action == 1 else 0.0, terminated, truncated, info


def test_rewards_that_add_up_to_one_but_for_rounding_are_one():
    (env,) = own_text_envs(Tenths, pool_size=64)
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(1)
    assert (reward, terminated, info["score"], info["exact"]) == (1.0, True, 1.0, True)
