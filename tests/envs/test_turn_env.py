"""The turn-level shell: gymnasium's own checks, seeds, characters and limits."""

import json
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import worldmtp.envs  # noqa: F401 - registers
from worldmtp.envs.catalogue import TURN_ENV_ID, WORLD_TASKS
from worldmtp.envs.worlds.guess_number import GuessNumber
from worldmtp.envs.worlds.turn_env import CHARSET, TextTurnEnv


class Parrot:
    """Repeats what it hears, behind what it was made with; "end" is the end."""

    def __init__(self, opening="hi", prefix=""):
        self.opening, self.prefix = opening, prefix

    def reset(self, seed):
        return self.opening, {"seed": seed}

    def step(self, text):
        return self.prefix + text, 0.5, text == "end", False, {}


@pytest.mark.parametrize("name", list(WORLD_TASKS))
def test_gymnasiums_check_without_a_warning(name):
    env = gymnasium.make(TURN_ENV_ID, world=name, render_mode="ansi").unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)


def test_a_spec_survives_json_and_world_kwargs_reach_the_world():
    kwargs = {"max_number": 3, "min_size": 4, "max_size": 4}
    env = gymnasium.make(TURN_ENV_ID, world="GuessNumber", world_kwargs=kwargs)
    assert json.loads(json.dumps(env.spec.kwargs)) == env.spec.kwargs
    again = gymnasium.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.reset(seed=3)[0] == "0-3:" == env.reset(seed=3)[0]
    by_path = gymnasium.make(TURN_ENV_ID, world="worldmtp.envs.worlds.guess_number:GuessNumber", world_kwargs=kwargs)
    assert by_path.reset(seed=3)[1] == env.reset(seed=3)[1]


def test_its_id_is_told_apart_from_those_that_take_tokens():
    turn_level = [name for name in gymnasium.registry if name.startswith("worldmtp_turns/")]
    assert turn_level == [TURN_ENV_ID]
    assert not TURN_ENV_ID.startswith("worldmtp/")


def test_world_seeds_are_drawn_from_the_seed_of_reset_and_can_be_given():
    env = TextTurnEnv(Parrot())
    first = env.reset(seed=0)[1]["world_seed"]
    assert first == int(np.random.default_rng(0).integers(2**31))
    assert env.reset()[1]["world_seed"] != first
    assert env.reset(seed=0)[1]["world_seed"] == first
    assert env.reset(options={"world_seed": 7})[1] == {"seed": 7, "world_seed": 7}
    with pytest.raises(ValueError, match=r"reset option 'seed' is unknown; expected one of \('world_seed',\)"):
        env.reset(options={"seed": 7})


def test_a_conversation_by_hand():
    env = TextTurnEnv(GuessNumber(max_number=3, min_size=4, max_size=4), render_mode="ansi")
    env.reset(options={"world_seed": 0})
    number = env.unwrapped.world.number
    assert env.step("nine")[:4] == ("?", 0.0, False, False)
    assert env.step(str(number))[:4] == ("=", 1.0, True, False)
    assert env.render() == f"0-3:\n> nine\n?\n> {number}\n="
    with pytest.raises(ResetNeeded, match="the episode is over"):
        env.step("1")


def test_max_turns_truncates_but_not_what_has_terminated():
    env = TextTurnEnv(Parrot(), max_turns=2)
    env.reset(seed=0)
    assert [env.step(text)[2:4] for text in "ab"] == [(False, False), (False, True)]
    env.reset(seed=0)
    assert [env.step(text)[2:4] for text in ("a", "end")] == [(False, False), (True, False)]


def test_characters_outside_are_refused_or_replaced():
    assert set(CHARSET) == {chr(code) for code in range(32, 127)} | {"\n"}
    env = TextTurnEnv(Parrot())
    env.reset(seed=0)
    assert env.step("a\nb")[0] == "a\nb"
    with pytest.raises(ValueError, match=r"the action is 'caf\xe9', with \['\xe9'\] outside printable ASCII"):
        env.step("caf\xe9")
    snow = TextTurnEnv(Parrot(prefix="\u2603"))
    snow.reset(seed=0)
    with pytest.raises(ValueError, match="the world replied '\u2603a'"):
        snow.step("a")
    with pytest.raises(ValueError, match="the world opened with"):
        TextTurnEnv(Parrot("\ttab")).reset(seed=0)
    env = TextTurnEnv(Parrot("\ttab", "\u2603"), foreign_characters="replace")
    assert env.reset(seed=0)[0] == "?tab"
    assert env.step("\xe9")[0] == "??"
    for text in ("?tab", "??", ""):
        assert env.observation_space.contains(text)


def test_texts_are_not_cut_in_silence():
    env = TextTurnEnv(Parrot(prefix="longer"), max_text=8)
    env.reset(seed=0)
    assert env.step("ab")[0] == "longerab"
    with pytest.raises(ValueError, match=r"the world replied 'longerabc'; expected a str of at most 8 characters"):
        env.step("abc")
    silent = TextTurnEnv(Parrot(opening=None))
    with pytest.raises(ValueError, match="the world opened with None; expected a str"):
        silent.reset(seed=0)


def test_vectorised_by_gymnasium():
    envs = gymnasium.make_vec(TURN_ENV_ID, num_envs=3, vectorization_mode="sync", world="Pig")
    openings, infos = envs.reset(seed=0)
    assert openings == tuple(gymnasium.make(TURN_ENV_ID, world="Pig").reset(seed=seed)[0] for seed in range(3))
    assert len(set(infos["world_seed"].tolist())) == 3
    replies, *_ = envs.step(("r", "h", "x"))
    assert replies[0] in "123456"
    assert replies[1:] == ("0", "?")
    envs.close()


def test_impossible_arguments():
    with pytest.raises(ValueError, match=r"did you mean .*GuessNumber"):
        TextTurnEnv("GuesNumber")
    with pytest.raises(TypeError, match="task 'Copy' is a Copy without worlds"):
        TextTurnEnv("Copy")
    with pytest.raises(ValueError, match="have no effect on Parrot"):
        TextTurnEnv(Parrot(), {"opening": "a"})
    with pytest.raises(TypeError, match="must be a name or an object with reset"):
        TextTurnEnv(Parrot)
    with pytest.raises(ValueError, match="foreign_characters='drop' is unknown"):
        TextTurnEnv(Parrot(), foreign_characters="drop")
    with pytest.raises(ValueError, match="render_mode='human' is unknown"):
        TextTurnEnv(Parrot(), render_mode="human")
    with pytest.raises(ValueError, match="max_text=0 and max_turns=None must be at least 1"):
        TextTurnEnv(Parrot(), max_text=0)
    with pytest.raises(ResetNeeded, match="call reset first"):
        TextTurnEnv(Parrot()).step("a")
