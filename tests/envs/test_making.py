"""Environments by id: ours, a user's own, typos; and what is told of them."""

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers.vector import ClipReward, FlattenObservation

import worldmtp.envs
from worldmtp.envs import (
    Autoreset,
    Example,
    TextGenEnv,
    TextGenVectorEnv,
    TextVectorEnv,
    VectorActionMask,
    VectorPotentialShaping,
    make_text_vec,
)
from worldmtp.envs.make import MakingError, describe, kind_of, subject_of, text_env_ids
from worldmtp.envs.task import Progress
from worldmtp.envs.tasks.function import FunctionTask
from worldmtp.envs.tasks.strings import Copy
from worldmtp.envs.text_env import unrecorded
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


class Lights(gymnasium.Env):
    """Two lamps; whoever says the lit one's name is paid."""

    observation_space = gymnasium.spaces.Text(8)
    action_space = gymnasium.spaces.Text(8)

    def __init__(self, lamps="ab", max_new=None):
        self.lamps = lamps

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.lit = self.lamps[self.np_random.integers(len(self.lamps))]
        return f"{self.lit}?", {"hidden": ""}

    def step(self, action):
        right = action == self.lit
        return "ok" if right else "no", float(right), right, False, {}


def test_an_environment_that_speaks_text_is_a_world(register):
    """Ids: pad 0, EOS 1, a 2, b 3, ? 4, o 5, k 6, n 7. Budgets are the rows', ``lamps`` is the environment's own."""
    register("TestLights-v0", entry_point=Lights)
    arguments = {"tokenizer": "char:ab?okn", "max_new": 8, "pool_size": 8, "heldout_fraction": 0.0}
    envs = make_text_vec("TestLights-v0", 2, lamps="b", **arguments)
    assert type(envs) is TextGenVectorEnv
    assert (envs.dataset.max_prompt, envs.max_new) == (2, 8)  # the opening was measured
    obs, infos = envs.reset(seed=0)
    assert infos["prompt_text"].tolist() == ["b?"] * 2
    envs.step(np.array([2, 3]))
    obs, rewards, terminated, _, infos = envs.step(np.array([1, 1]))
    assert obs["tokens"].tolist() == [[3, 4, 2, 1, 7, 5, 0, 0, 0, 0], [3, 4, 3, 1, 5, 6, 0, 0, 0, 0]]
    assert (rewards.tolist(), terminated.tolist()) == ([0.0, 1.0], [False, True])
    assert subject_of(envs.task) == "Two lamps; whoever says the lit one's name is paid."


def test_a_world_says_which_budget_it_cannot_measure(register):
    register("TestLights-v0", entry_point=Lights)
    with pytest.raises(ValueError, match="max_new cannot be measured, since WorldTask has no answers to show"):
        make_text_vec("TestLights-v0", 2, tokenizer="char:ab?okn", pool_size=8)


class Own(TextGenEnv):
    pass


ARGUMENTS = {
    "task": "Copy",
    "task_kwargs": {"alphabet": "ab", "min_length": 1, "max_length": 3},
    "tokenizer": "char:ab=",
    "max_prompt": 4,
    "max_new": 4,
    "pool_size": 4,
}


def masked_and_shaped(num_envs=1, *, autoreset_mode="disabled", **kwargs):
    shaped = VectorPotentialShaping(TextGenVectorEnv(num_envs, **kwargs), "prefix_match", gamma=1.0)
    return VectorActionMask(shaped, alphabet="a")


def test_registered_wrappers_are_kept(register, monkeypatch):
    """Ids: pad 0, EOS 1, a 2, b 3, = 4. Behind "ab=" the letter a is half of the answer, so it earns 1/2 - 0."""
    monkeypatch.setattr(worldmtp.envs, "masked_and_shaped", masked_and_shaped, raising=False)
    register(
        "TestMasked-v0",
        entry_point=Own,
        vector_entry_point="worldmtp.envs:masked_and_shaped",
        kwargs=ARGUMENTS,
    )
    envs = make_text_vec("TestMasked-v0", 2)
    assert type(envs) is VectorActionMask
    assert isinstance(envs, TextVectorEnv)
    assert type(envs.env) is VectorPotentialShaping
    _, infos = envs.reset(seed=0, options={"prompts": [Example("ab=", "ab")] * 2})
    assert infos["action_mask"].tolist() == [[0, 1, 1, 0, 0]] * 2
    with pytest.raises(ValueError, match=r"action 3 \('b'\) of row 1 is forbidden"):
        envs.step(np.array([2, 3]))
    assert envs.step(np.array([2, 2]))[1].tolist() == [0.5, 0.5]
    before = envs.state()
    assert envs.load_state(before)["length"].tolist() == [[4], [4]]


def register_wrapped(register, monkeypatch, wrap):
    monkeypatch.setattr(worldmtp.envs, "wrapped", lambda n=1, *, num_envs=1, **kw: wrap(num_envs, **kw), raising=False)
    register("TestWrapped-v0", entry_point=Own, vector_entry_point="worldmtp.envs:wrapped", kwargs=ARGUMENTS)


@pytest.mark.parametrize(
    ("wrap", "paid"),
    [
        (lambda n, **kw: ClipReward(masked_and_shaped(n, **kw), 0.0, 0.25), 0.0),
        (
            lambda n, **kw: VectorActionMask(
                VectorPotentialShaping(ClipReward(TextGenVectorEnv(n, **kw), 0.0, 0.25), "prefix_match", gamma=1.0),
                alphabet="a",
            ),
            -0.75,
        ),
    ],
    ids=["outermost", "innermost"],
)
def test_a_wrapper_of_gymnasiums_is_kept_and_cannot_be_resumed(register, monkeypatch, wrap, paid):
    register_wrapped(register, monkeypatch, wrap)
    with pytest.warns(
        UserWarning, match=r"wrappers without snapshots, \['ClipReward'\]: a run in it cannot be resumed"
    ):
        envs = make_text_vec("TestWrapped-v0", 1)
    assert isinstance(envs, TextVectorEnv)
    assert (envs.num_envs, envs.max_new, type(envs.task).__name__) == (1, 4, "Copy")
    _, infos = envs.reset(seed=0, options={"prompts": [Example("a=", "a")]})
    assert infos["action_mask"].tolist() == [[0, 1, 1, 0, 0]]
    envs.step(np.array([2]))
    # The score is 1 and F is 0 - 1. Clipped to 0..1/4 outside the shaping: 1 - 1 = 0; inside it: 1/4 - 1.
    assert envs.step(np.array([1]))[1].tolist() == [paid]
    state = envs.state()
    assert state["unsaved"] == ["ClipReward"]
    with pytest.raises(ValueError, match=r"the wrappers \['ClipReward'\] keep no snapshots"):
        envs.load_state(state)


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (FlattenObservation, r"observations of .* lack \['tokens', 'length', 'prompt_length'\]"),
        (lambda envs: Doubled(envs), r"whose actions are Discrete\(10\) where those of the text env are Discrete\(5\)"),
    ],
    ids=["observations", "actions"],
)
def test_wrappers_that_training_cannot_act_through_are_refused(register, monkeypatch, wrap, told):
    register_wrapped(register, monkeypatch, lambda n, **kw: wrap(TextGenVectorEnv(n, **kw)))
    with pytest.raises(MakingError, match=f"'TestWrapped-v0' makes .*{told}"):
        make_text_vec("TestWrapped-v0", 1)


class Doubled(gymnasium.vector.VectorWrapper):
    """Has two ids for each token."""

    def __init__(self, env):
        super().__init__(env)
        self.single_action_space = gymnasium.spaces.Discrete(10)


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
    with pytest.raises(MakingError, match=r"there is no environment 'Zyx-v0'\. One of your own is known when"):
        make_text_vec("Zyx-v0", 1)


def test_environments_of_other_things_are_refused():
    with pytest.raises(MakingError, match=r"'CartPole-v1' cannot be made with .*Training needs a TextGenVectorEnv"):
        make_text_vec("CartPole-v1", 1, **ARGUMENTS)
    with pytest.raises(MakingError, match=r"PendulumEnv\.observation_space is Box.*; expected gymnasium\.spaces\.Text"):
        make_text_vec("Pendulum-v1", 1, max_new=4, max_prompt=4)


def test_wrappers_are_named(register):
    """Ids: pad 0, EOS 1, a 2, b 3, = 4. Behind "ab=" the letter a is half of the answer, so it earns 1/2 - 0."""
    shaping = {"name": "potential_shaping", "potential": "prefix_match", "gamma": 1.0}
    arguments = {name: value for name, value in ARGUMENTS.items() if name != "task"}
    envs = make_text_vec("worldmtp/Copy-v0", 2, wrappers=[shaping, "action_mask"], **arguments)
    assert [type(envs), type(envs.env)] == [VectorActionMask, VectorPotentialShaping]
    _, infos = envs.reset(seed=0, options={"prompts": [Example("ab=", "ab")] * 2})
    assert infos["action_mask"].tolist() == [[0, 1, 1, 1, 1]] * 2
    assert envs.step(np.array([2, 2]))[1].tolist() == [0.5, 0.5]


def test_wrappers_of_a_registration_are_under_the_autoreset():
    shaping = {"name": "potential_shaping", "potential": "prefix_match", "gamma": 1.0}
    envs = gymnasium.make_vec("worldmtp/Copy-v0", 2, pool_size=8, text_wrappers=[shaping])
    assert [type(envs), type(envs.env)] == [Autoreset, VectorPotentialShaping]
    envs.reset(seed=0)
    *_, infos = envs.step(np.array([1, 1]))
    assert infos["_shaping"].tolist() == infos["_final_obs"].tolist() == [True, True]


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ("action_mak", "wrapper='action_mak' is unknown; did you mean 'action_mask'"),
        ({"min_new": 2}, r"wrapper \{'min_new': 2\} has no name"),
        ("potential_shaping", "wrapper 'potential_shaping' does not take {}: .*missing"),
        ({"name": "action_mask", "min_nw": 2}, "does not take {'min_nw': 2}: .*unexpected keyword argument 'min_nw'"),
        ("no_such_module:Wrapper", "wrapper 'no_such_module:Wrapper' cannot be imported"),
    ],
)
def test_wrappers_that_cannot_be_made_are_named(wrapper, message):
    with pytest.raises(ValueError, match=message):
        make_text_vec("worldmtp/Copy-v0", 1, wrappers=[wrapper], pool_size=8)


@pytest.mark.parametrize("name", ["episode_recorder", "worldmtp.envs:VectorEpisodeRecorder"])
def test_what_writes_a_file_is_known(name, tmp_path):
    kept = ["attention_mask", {"name": "action_mask", "min_new": 1}]
    assert unrecorded([kept[0], {"name": name, "path": str(tmp_path / "f")}, kept[1]]) == kept


def test_wrong_arguments_are_named():
    with pytest.raises(MakingError, match=r"cannot be made with \{'max_nwe': 3\}: .*unexpected keyword argument"):
        make_text_vec("worldmtp/Reverse-v0", 1, max_nwe=3)


@pytest.mark.parametrize(
    ("kwargs", "end"),
    [
        ({"max_nw": 8}, "'max_nw'. Did you mean 'max_new'? In its place give ++env.kwargs.max_new=8 (worldmtp train)"),
        (
            {"tokeniser": {"kind": "char", "alphabet": "a="}},
            "'tokeniser'. Did you mean 'tokenizer'? In its place give "
            "'++env.kwargs.tokenizer={kind:char,alphabet:\"a=\"}' (worldmtp train)",
        ),
        ({"qqq": 1}, "'qqq'."),
        ({"task_kwargs": {"max_nw": 8}}, "Did you mean 'max_new'? In its place give ++env.kwargs.max_new=8 "),
        ({"task_kwargs": {"qqq": 8}}, "'qqq'."),
        (
            {"min_length": 1},
            "Did you mean 'task_kwargs.min_length'? In its place give ++env.kwargs.task_kwargs",
        ),
        ({"task_kwargs": {"min_lenth": 1}}, "'min_lenth'. Did you mean 'task_kwargs.min_length'? In its place give "),
    ],
)
def test_a_misspelt_keyword_names_the_nearest_and_no_other_cure(kwargs, end):
    with pytest.raises(MakingError, match="unexpected keyword argument") as caught:
        make_text_vec("worldmtp/Reverse-v0", 1, **kwargs)
    message = str(caught.value)
    assert end in message
    assert message.endswith(end if "Did" not in end else " (worldmtp envs, eval).")


def test_task_kwargs_that_lose_the_source_are_refused_with_what_is_to_stay():
    """A chain's texts with another prefix were texts of Mess3 when its source was nowhere named."""
    with pytest.raises(MakingError, match="missing 1 required positional argument: 'source'") as caught:
        make_text_vec("worldmtp/Markov-v0", 1, task_kwargs={"prefix_length": 8})
    end = "those that are to stay: ++env.kwargs.task_kwargs.source=markov ++env.kwargs.task_kwargs.answer_length=8 ("
    assert end in str(caught.value)


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
