"""Names, gymnasium ids and specs; one's own task in ten lines."""

import importlib
import json
import pickle
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import NameNotFound
from gymnasium.vector import AutoresetMode

import worldmtp.envs
from worldmtp.envs import Example, Score, TextGenEnv, TextGenVectorEnv, env_id, make_task, register_task, task_names

EXPECTED = {"Copy", "Reverse", "RandomDigits", "SpellBackward", "ChainSum", "CaesarCipher", "PathStar"}


def vowels(rng: np.random.Generator) -> Example:
    word = "".join("abcde"[index] for index in rng.integers(5, size=4))
    return Example(prompt=word + "=", answer="".join(letter for letter in word if letter in "ae"))


def test_the_catalogue_is_registered(registered_ids):
    assert set(task_names()) >= EXPECTED
    assert {env_id(name) for name in EXPECTED} | {"worldmtp/ReasoningGym-v0"} <= set(registered_ids)


def test_every_spec_survives_json(registered_ids):
    for name in registered_ids:
        spec = gymnasium.spec(name)
        again = EnvSpec.from_json(spec.to_json())
        assert again == spec
        assert json.loads(json.dumps(spec.kwargs)) == spec.kwargs
        assert pickle.loads(pickle.dumps(spec)) == spec


def test_gym_make_and_make_vec_give_our_classes():
    env = gymnasium.make("worldmtp/Copy-v0", pool_size=16)
    assert isinstance(env.unwrapped, TextGenEnv)
    envs = gymnasium.make_vec("worldmtp/Copy-v0", num_envs=3, autoreset_mode="disabled", pool_size=16)
    assert isinstance(envs, TextGenVectorEnv)
    assert (envs.num_envs, envs.metadata["autoreset_mode"]) == (3, AutoresetMode.DISABLED)
    assert gymnasium.make_vec(EnvSpec.from_json(envs.spec.to_json())).num_envs == 3
    synced = gymnasium.make_vec("worldmtp/Copy-v0", num_envs=2, vectorization_mode="sync", pool_size=16)
    assert synced.observation_space == gymnasium.make_vec("worldmtp/Copy-v0", num_envs=2).observation_space
    obs, _ = synced.reset(seed=0)
    assert obs["tokens"].shape == (2, 18)


def test_any_reasoning_gym_dataset_by_name():
    envs = gymnasium.make_vec(
        "worldmtp/ReasoningGym-v0", num_envs=2, task="products", task_kwargs={"max_digits": 1}, pool_size=16
    )
    _, infos = envs.reset(seed=0)
    left, right = infos["prompt_text"][0].removesuffix("=").split(" * ")
    assert envs.example_of(0).answer == str(int(left) * int(right))


def test_a_task_in_ten_lines(unregistered):
    register_task("Vowels", max_prompt=5, max_new=5, tokenizer="char:abcde=")(vowels)
    envs = gymnasium.make_vec("worldmtp/Vowels-v0", num_envs=2, pool_size=64)
    obs, _ = envs.reset(seed=0, options={"prompts": [Example("abce=", "ae"), Example("bbbb=", "")]})
    assert obs["tokens"][0].tolist() == [2, 3, 4, 6, 7, 0, 0, 0, 0, 0]
    _, rewards, *_ = envs.step(np.array([2, 1]))
    assert rewards.tolist() == [0.0, 1.0]
    envs.step(np.array([6, 2]))
    _, rewards, *_ = envs.step(np.array([1, 2]))
    assert rewards[0] == 1.0


def test_a_reward_function_and_a_task_class(unregistered):
    register_task("Half", max_prompt=8, max_new=5, score=lambda example, text: 0.5, probe_bound=0.5)(vowels)
    score = make_task("Half").score(Example("a=", "a"), "x", np.zeros(0, dtype=np.int64))
    assert (score.value, score.exact) == (0.5, False)

    @register_task("Always", max_prompt=8, max_new=5, task_kwargs={"value": 0.25})
    class Always:
        def __init__(self, value):
            self.value = value

        def sample(self, rng, split):
            return vowels(rng)

        def score(self, example, text, ids):
            return Score(self.value)

    env = gymnasium.make("worldmtp/Always-v0", pool_size=8)
    env.reset(seed=0)
    assert env.step(1)[1] == 0.25


def test_registering_again_is_silent_for_the_same_source_and_an_error_for_another(unregistered):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            register_task("Vowels", max_prompt=5, max_new=5)(vowels)
        importlib.reload(worldmtp.envs)
    with pytest.raises(ValueError, match=r"task 'Vowels' is already registered by .*:vowels"):
        register_task("Vowels", max_prompt=5, max_new=5)(lambda rng: Example("a"))


@pytest.mark.parametrize("name", ["", "9lives", "my-task", "a b", "Task-v0"])
def test_impossible_names_are_refused(name):
    with pytest.raises(ValueError, match="must be letters, digits and underscores"):
        register_task(name, max_prompt=5, max_new=5)


def test_what_cannot_be_a_task_is_refused(unregistered):
    with pytest.raises(TypeError, match="give it a score method"):
        register_task("Class", max_prompt=5, max_new=5, score=lambda example, text: 1.0)(dict)
    register_task("NoExample", max_prompt=5, max_new=5)(str)
    with pytest.raises(TypeError, match="without the methods sample and score"):
        make_task("NoExample")


def test_keywords_without_effect_are_refused(unregistered):
    class Guess:
        def sample(self, rng, split):
            return vowels(rng)

        def score(self, example, text, ids):
            return Score(0.5)

    with pytest.raises(TypeError, match=r"'Guess' is a Task class: write probe_bound = 0\.7 into the class"):
        register_task("Guess", max_prompt=8, max_new=5, probe_bound=0.7)(Guess)
    with pytest.raises(TypeError, match=r"'Vowels' is a function, which task_kwargs=\{'a': 1\} would not reach"):
        register_task("Vowels", max_prompt=8, max_new=5, task_kwargs={"a": 1})(vowels)
    assert {"Guess", "Vowels"}.isdisjoint(task_names())


def not_an_example(rng: np.random.Generator) -> str:
    return "abc"


def test_a_function_that_returns_no_example_is_told_so(unregistered):
    register_task("Wrong", max_prompt=5, max_new=5)(not_an_example)
    with pytest.raises(TypeError, match=r"not_an_example\(rng\) returned str; return worldmtp\.envs\.Example"):
        gymnasium.make("worldmtp/Wrong-v0").reset()


def test_typos_suggest_the_nearest():
    with pytest.raises(NameNotFound, match="Did you mean: `Copy`"):
        gymnasium.make("worldmtp/Coppy-v0")
    with pytest.raises(AttributeError, match="has no attribute 'TextGenEnvs'; did you mean 'TextGenEnv'"):
        worldmtp.envs.TextGenEnvs  # noqa: B018 - the access is what is tested


def test_all_public_names_can_be_imported():
    for name in worldmtp.envs.__all__:
        assert getattr(worldmtp.envs, name) is not None
    assert set(dir(worldmtp.envs)) == set(worldmtp.envs.__all__)
