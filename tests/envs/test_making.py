"""Environments by id: ours, a user's own, typos; and what is told of them."""

import gymnasium
import pytest

import worldmtp.envs
from worldmtp.envs import Example, TextGenEnv, make_text_vec
from worldmtp.envs.describe import describe, kind_of, subject_of, text_env_ids
from worldmtp.envs.making import MakingError
from worldmtp.envs.stacked import StackedVectorEnv
from worldmtp.envs.task import Progress
from worldmtp.envs.tasks.copy import Copy
from worldmtp.envs.tasks.function import FunctionTask
from worldmtp.envs.worlds.task import WorldTask


@pytest.fixture
def register():
    """Registers ids for one test."""
    before = dict(gymnasium.registry)
    yield gymnasium.register
    for env_id in set(gymnasium.registry) - set(before):
        del gymnasium.registry[env_id]


def test_ours_is_made_by_its_vector_entry_point():
    envs = make_text_vec("worldmtp/Reverse-v0", 3, max_new=7)
    assert type(envs) is worldmtp.envs.TextGenVectorEnv
    assert (envs.num_envs, envs.max_new, envs.metadata["autoreset_mode"].value) == (3, 7, "Disabled")


def test_a_module_before_the_colon_is_imported():
    assert make_text_vec("worldmtp.envs:worldmtp/Copy-v0", 1).num_envs == 1
    with pytest.raises(MakingError, match=r"'no_such_module:My-v0' cannot be made: No module named 'no_such_module'"):
        make_text_vec("no_such_module:My-v0", 1)


class Own(TextGenEnv):
    pass


def test_a_single_environment_is_stacked_and_keeps_its_arguments(register):
    arguments = {"task": "Copy", "tokenizer": "char:abcdefghij=", "max_prompt": 9, "max_new": 9}
    register("TestOwn-v0", entry_point=Own, kwargs=arguments)
    envs = make_text_vec("TestOwn-v0", 2, pool_size=10, max_new=9)
    assert isinstance(envs, StackedVectorEnv)
    assert len(envs.problem.pool("train")) == 10  # it takes any keyword, so this was its own


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("worldmtp/Revers-v0", "Reverse"),
        ("Revers-v0", "worldmtp/Reverse-v0"),
        ("reverse-v0", "worldmtp/Reverse-v0"),
        ("worldmtp/Reverse", "worldmtp/Reverse-v0"),
        ("worldmpt/Reverse-v0", "worldmtp"),
    ],
    ids=["name", "namespace left out", "case", "no version", "namespace"],
)
def test_typos_suggest_the_nearest(given, meant):
    with pytest.raises(MakingError, match=f"'{given}' cannot be made: .*Did you mean: `{meant}`"):
        make_text_vec(given, 1)


def test_no_suggestion_where_nothing_is_near():
    with pytest.raises(MakingError, match=r"there is no environment 'Zyx-v0'\.$"):
        make_text_vec("Zyx-v0", 1)


def test_environments_of_other_things_are_refused():
    with pytest.raises(MakingError, match=r"'CartPole-v1' cannot be made with .*Training needs a TextGenVectorEnv"):
        make_text_vec("CartPole-v1", 1)
    with pytest.raises(ValueError, match=r"PendulumEnv\.tokenizer is None; expected a worldmtp\.envs\.Tokenizer"):
        make_text_vec("Pendulum-v1", 1)


def test_wrong_arguments_are_named():
    with pytest.raises(MakingError, match=r"cannot be made with \{'max_nwe': 3\}: .*unexpected keyword argument"):
        make_text_vec("worldmtp/Reverse-v0", 1, max_nwe=3)


def test_a_description_measures_lengths():
    it = describe("worldmtp/PathStar-v0", pool_size=8)
    # Two arms of five nodes: 8 edges of two letters, start, goal and "="; the arm's other four nodes.
    assert (it.prompt.median, it.prompt.max, it.max_prompt) == (19, 19, 19)
    assert it.answer is not None
    assert (it.answer.median, it.answer.max, it.max_new) == (4, 4, 5)
    assert (it.id, it.kind, it.vocab_size) == ("worldmtp/PathStar-v0", "answer", 12)
    assert it.as_dict()["prompt"] == {"median": 19.0, "max": 19}


def test_catalogue_holds_ours_and_nothing_else():
    ids = text_env_ids()
    assert {"worldmtp/Copy-v0", "worldmtp/ReasoningGym-v0"} <= set(ids)
    assert not [env_id for env_id in ids if env_id.startswith(("CartPole", "Pendulum"))]


def asked(rng):
    """What is asked.

    And more about it.
    """
    return Example("a=", "a")


class Dense(Copy):
    """Rewarded on the way."""

    def progress(self, example, text, ids):
        return Progress(0.0)


class Talker:
    """Says nothing."""

    def __init__(self, mood=0):
        self.mood = mood

    def reset(self, seed):
        return "a", {}

    def step(self, text):
        return "", 0.0, True, False, {}


@pytest.mark.parametrize(
    ("task", "kind", "subject"),
    [
        (FunctionTask(asked), "answer", "What is asked."),
        (FunctionTask(lambda rng: Example("a=")), "answer", ""),
        (Dense(), "dense", "Rewarded on the way."),
        (WorldTask(Talker), "turns", "Says nothing."),
        (WorldTask(Talker, {"mood": 3}), "turns", "Says nothing. mood=3"),
    ],
    ids=["function", "nothing said", "dense", "world", "world with kwargs"],
)
def test_kind_and_subject(task, kind, subject):
    assert (kind_of(task), subject_of(task)) == (kind, subject)


def test_no_global_generator_is_drawn_from(global_rng_untouched):
    with global_rng_untouched():
        describe("worldmtp/Reverse-v0", pool_size=8)
        make_text_vec("worldmtp/Reverse-v0", 2, pool_size=8).reset(seed=0)
