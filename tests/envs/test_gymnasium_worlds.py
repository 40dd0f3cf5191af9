"""Gymnasium environments that speak text are worlds."""

import gymnasium
import numpy as np
import pytest

from worldmtp.envs import register_task, registry
from worldmtp.envs.worlds.adapters import from_gymnasium


def play(world, seed, texts):
    return [world.reset(seed)[0], *(world.step(text)[0] for text in texts)]


class Riddle(gymnasium.Env):
    """Asks for one of two words, as gymnasium would have it."""

    observation_space = action_space = gymnasium.spaces.Text(16)

    def __init__(self, words=("yes", "no")):
        self.words = words

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.word = self.words[self.np_random.integers(len(self.words))]
        return f"say {self.word}", {"hidden": ""}

    def step(self, action):
        return "well", 4.0 * (action == self.word), True, False, {}


class Mute(Riddle):
    """Shows numbers."""

    observation_space = gymnasium.spaces.Discrete(3)


@pytest.fixture
def riddle_id():
    gymnasium.register("TestRiddle-v0", entry_point=Riddle)
    yield "TestRiddle-v0"
    del gymnasium.registry["TestRiddle-v0"]


@pytest.mark.parametrize("given", ["id", "class", "path", "object"])
def test_a_gymnasium_environment_that_speaks_is_a_world(riddle_id, given):
    kinds = {"id": riddle_id, "class": Riddle, "path": f"{__name__}:Riddle", "object": Riddle(("no",))}
    kwargs = {} if given == "object" else {"words": ["no"]}
    world = from_gymnasium(kinds[given], returns=(0, 8), **kwargs)
    assert world.reset(3) == ("say no", {"hidden": ""})
    assert world.step("no") == ("well", 0.5, True, False, {})  # 4 of 8


def test_its_seed_decides_it():
    world, other = from_gymnasium(Riddle), from_gymnasium(Riddle)
    openings = [world.reset(seed)[0] for seed in range(12)]
    assert openings == [other.reset(seed)[0] for seed in range(12)]
    assert set(openings) == {"say yes", "say no"}


def test_a_world_is_a_gymnasium_environment_and_back():
    """The turn-level environment of this package speaks text, too."""
    world = from_gymnasium("worldmtp_turns/World-v0", world="GuessNumber")
    opening, info = world.reset(5)
    assert (opening[-1], set(info)) == (":", {"hidden", "optimal_value", "world_seed"})
    assert world.step("zz")[0] == "?"


@pytest.mark.parametrize(
    ("given", "kwargs", "error", "message"),
    [
        ("CartPole-v1", {}, TypeError, r"CartPoleEnv\.observation_space is Box.*; expected gymnasium\.spaces\.Text"),
        (Mute, {}, TypeError, r"Mute\.observation_space is Discrete\(3\)"),
        ("NoSuch-v0", {}, ValueError, "gymnasium environment 'NoSuch-v0' cannot be made"),
        (f"{__name__}:Ridle", {}, ValueError, "environment '.*:Ridle' cannot be imported"),
        (Riddle(), {"words": ["a"]}, ValueError, "have no effect on Riddle, which is already made"),
    ],
    ids=["id of numbers", "class of numbers", "unknown id", "unknown class", "made already"],
)
def test_gymnasium_environments_that_cannot_be_worlds(given, kwargs, error, message):
    with pytest.raises(error, match=message):
        from_gymnasium(given, **kwargs)


def test_a_gymnasium_class_is_registered_like_any_other(request, monkeypatch):
    name = "RiddleByClass"
    monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    register_task(name, max_new=12, max_turn=4, pool_size=8, heldout_fraction=0.0)(Riddle)
    request.addfinalizer(lambda: gymnasium.registry.pop(f"worldmtp/{name}-v0"))
    envs = gymnasium.make_vec(f"worldmtp/{name}-v0", 1, autoreset_mode="disabled")
    _, infos = envs.reset(seed=0, options={"prompts": ["say no"]})
    for token in envs.tokenizer.encode("no"):
        envs.step(np.array([token]))
    _, rewards, terminated, _, infos = envs.step(np.array([envs.tokenizer.eos_id]))
    assert (rewards.tolist(), terminated.tolist(), infos["reply"].tolist()) == ([4.0], [True], ["well"])
