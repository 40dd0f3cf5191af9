"""A reset that is refused is no reset: whatever it was asked, the next one is the one that would have come anyway."""

import numpy as np
import pytest

from worldmtp.envs import VectorActionMask, VectorEpisodeRecorder
from worldmtp.envs.worlds.turn_env import TextTurnEnv


class Greeter:
    """Opens with its seed."""

    def reset(self, seed):
        return str(seed), {}

    def step(self, text):
        return "", 0.0, True, False, {}


@pytest.fixture
def make(make_single, make_vector, tmp_path):
    makers = {
        "single": make_single,
        "vector": lambda: make_vector(2, "disabled"),
        "resetting": lambda: make_vector(2, "next_step"),
        "turns": lambda: TextTurnEnv(world=Greeter(), max_turns=1),
        "masked": lambda: VectorActionMask(make_vector(2, "disabled")),
    }
    return lambda kind: makers[kind]()


def shown(returned):
    """The prompts of a reset."""
    obs, info = returned
    return obs if isinstance(obs, str) else np.asarray(info["prompt_text"]).tolist()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {"splt": "train"}) for kind in ("single", "vector", "resetting", "turns", "masked")),
        *((kind, {"split": "nowhere"}) for kind in ("single", "vector", "resetting")),
        *((kind, {"indices": [999, 0]}) for kind in ("single", "vector", "resetting")),
        *((kind, {"prompts": ["unknown="]}) for kind in ("single", "vector", "resetting")),
        *((kind, {"reset_mask": np.zeros(3, dtype=bool)}) for kind in ("vector", "resetting", "masked")),
    ],
)
@pytest.mark.parametrize("seed", [None, 5])
def test_the_generator_is_where_it_was(make, kind, options, seed):
    """Another generator shows the same eight prompts, of about seven words, with odds of 7**-8."""
    refused, other = make(kind), make(kind)
    for env in (refused, other):
        env.reset(seed=0)
        env.reset()
    with pytest.raises(ValueError, match=r"unknown|split|ind|prompt|reset_mask"):
        refused.reset(seed=seed, options=options)
    assert [shown(refused.reset()) for _ in range(8)] == [shown(other.reset()) for _ in range(8)]
    assert refused.np_random_seed == other.np_random_seed == 0


def test_an_environment_that_was_never_reset_stays_so(make):
    env = make("vector")
    with pytest.raises(ValueError, match="reset option='splt' is unknown"):
        env.reset(seed=5, options={"splt": "train"})
    assert env._np_random is None


def test_a_wrapper_still_waits_for_the_rows_that_have_ended(make):
    """After the refusal row 0 is done as before, and its actions are ignored, forbidden ones too. Padding is 0."""
    env = make("masked")
    env.reset(seed=0)
    env.step(np.array([1, 2]))
    with pytest.raises(ValueError, match="split"):
        env.reset(options={"split": "nowhere"})
    env.step(np.array([0, 2]))


def test_a_recorder_keeps_the_seed_of_the_episodes_it_writes(make_vector, tmp_path):
    path = tmp_path / "episodes.jsonl"
    env = VectorEpisodeRecorder(make_vector(1, "disabled"), path)
    env.reset(seed=3)
    with pytest.raises(ValueError, match="split"):
        env.reset(seed=4, options={"split": "nowhere"})
    env.step(np.array([1]))
    assert '"seed": 3' in path.read_text()


class OpensBadly(Greeter):
    """Opens with a character outside the space for seed 7."""

    def reset(self, seed):
        return "\u2603" if seed == 7 else str(seed), {}


def test_what_was_drawn_before_the_refusal_is_drawn_again():
    """The turn-level environment draws a world's seed before it sees the opening."""
    refused, other = (TextTurnEnv(world=OpensBadly(), max_turns=1) for _ in range(2))
    refused.reset(seed=0)
    other.reset(seed=0)
    with pytest.raises(ValueError, match="the world opened with"):
        refused.reset(options={"world_seed": 7})
    assert refused.reset() == other.reset()
