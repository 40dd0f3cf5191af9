"""Conversations: a dialogue by hand, whose tokens are whose, worlds that fail, hang, are lost and found.

Ids: pad 0, EOS 1, a 2, b 3, = 4, ! 5; prompts take up to 2 tokens.
"""

import json
import time

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from worldmtp.envs import CharTokenizer, TextGenEnv, TextGenVectorEnv, check_text_env, check_vector_env
from worldmtp.envs.checks import check_worlds
from worldmtp.envs.scoring import WorldReplay
from worldmtp.envs.task import Example
from worldmtp.envs.text_env import TextVectorView
from worldmtp.envs.worlds.task import WorldTask
from worldmtp.envs.wrappers.autoreset import with_autoreset


class Parrot:
    """Repeats what is said with an exclamation mark and pays 0.25 for each new text; three turns. "b" leaves."""

    def reset(self, seed):
        self.seed, self.heard = seed, []
        return "ab"[seed % 2] + "=", {}

    def step(self, text):
        if text == "b":
            return "", 0.5, True, False, {"is_success": True, "reason": "left"}
        reward = 0.25 * (text not in self.heard)
        self.heard.append(text)
        return text + "!", reward, False, len(self.heard) == 3, {}


class Fails(Parrot):
    def step(self, text):
        if text == "bb":
            raise RuntimeError("this world has fallen apart")
        return super().step(text)


class Hangs(Parrot):
    def step(self, text):
        if text == "bb":
            time.sleep(60)
        return super().step(text)


def kwargs_of(world, **changes):
    kwargs = {
        "task": WorldTask(world, probe_bound=0.5, num_seeds=64),
        "tokenizer": CharTokenizer("ab=!"),
        "max_prompt": 2,
        "max_new": 12,
        "pool_size": 16,
    }
    return kwargs | changes


def vector_of(world, num_envs, mode="disabled", **changes):
    return with_autoreset(TextGenVectorEnv(num_envs, **kwargs_of(world, **changes)), mode)


def asked(*seeds):
    return {"prompts": [Example("ab"[seed % 2] + "=", meta={"seed": seed}, hidden=str(seed)) for seed in seeds]}


def test_a_dialogue_by_hand():
    envs = vector_of(Parrot, 2)
    envs.reset(seed=0, options=asked(0, 1))
    steps = [envs.step(np.array(column)) for column in ([2, 3], [1, 1], [1, 2], [2, 2], [1, 2])]
    # row 0 says "a", is told "a!" and paid; says nothing, is told "!" and paid; says "a" again, and the world stops
    # row 1 says "b": the world is left, with half of the credit
    assert [step[1].tolist() for step in steps] == [[0, 0], [0.25, 0.5], [0.25, 0], [0, 0], [0, 0]]
    assert [step[2].tolist() for step in steps] == [[False, False], [False, True], *[[False, False]] * 3]
    assert [step[3].tolist() for step in steps] == [[False, False]] * 4 + [[True, False]]
    assert steps[4][0]["tokens"].tolist() == [
        [2, 4, 2, 1, 2, 5, 1, 5, 2, 1, 2, 5, 0, 0],
        [3, 4, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert steps[4][0]["length"].tolist() == [[12], [4]]
    assert steps[1][4]["reply"].tolist() == ["a!", ""]
    assert steps[1][4]["num_written"].tolist() == [2, 0]
    assert steps[2][4]["_num_written"].tolist() == [True, False]
    assert "num_written" not in steps[0][4]
    left, stopped = steps[1][4]["final_info"], steps[4][4]["final_info"]
    assert (left["text"][1], left["score"][1], left["exact"][1], left["reason"][1]) == ("b", 0.5, True, "left")
    assert (left["num_tokens"][1], left["components"]["num_turns"][1]) == (2, 1)
    assert (stopped["text"][0], stopped["score"][0], stopped["exact"][0]) == ("aa!!aa!", 0.5, False)
    assert (stopped["num_tokens"][0], stopped["components"]["num_turns"][0]) == (5, 3)
    assert stopped["reason"][0] == "truncated"
    acted = [False, False, True, True, False, False, True, False, True, True, False, False, False, False]
    assert stopped["acted"][0].tolist() == acted


def test_a_world_is_told_of_padding_and_may_repeat_it_without_blame():
    envs = vector_of(Parrot, 1)
    envs.reset(seed=0, options=asked(0))
    steps = [envs.step(np.array([action])) for action in (2, 0, 3, 1)]
    assert steps[3][4]["reply"].tolist() == ["ab!"]
    assert envs.state()["referee"]["said"] == [["a\ufffdb"]]
    assert envs.scorer.counters.errors == 0


def test_a_full_row_is_truncated_and_its_unfinished_turn_not_played():
    envs = vector_of(Parrot, 1, max_new=4)
    envs.reset(seed=0, options=asked(0))
    steps = [envs.step(np.array([action])) for action in (2, 2, 2, 2)]
    assert [step[3].tolist() for step in steps] == [[False], [False], [False], [True]]
    assert sum(step[1][0] for step in steps) == 0.0
    assert steps[3][4]["final_info"]["components"]["num_turns"][0] == 0


def test_a_truncated_conversation_gives_back_what_was_paid_where_it_is_worth_nothing():
    envs = vector_of(Parrot, 1, truncation_score="zero")
    envs.reset(seed=0, options=asked(0))
    steps = [envs.step(np.array([action])) for action in (2, 1, 1, 3, 3, 1)]
    assert [step[1][0] for step in steps] == [0, 0.25, 0.25, 0, 0, -0.5]
    assert steps[5][4]["final_info"]["score"][0] == 0.0


@pytest.mark.filterwarnings("ignore:scoring 'a' for the prompt:RuntimeWarning")
def test_a_reply_that_has_no_tokens_is_the_worlds_error():
    class Shouts(Parrot):
        def step(self, text):
            return "A!", 1.0, False, False, {}

    envs = vector_of(Shouts, 1)
    envs.reset(seed=0, options=asked(0))
    steps = [envs.step(np.array([action])) for action in (2, 1)]
    assert (steps[1][1][0], steps[1][2][0], envs.scorer.counters.errors) == (0.0, True, 1)
    assert steps[1][4]["final_info"]["reason"][0] == "error"


def test_of_a_reply_that_does_not_fit_the_row_keeps_what_does():
    envs = vector_of(Parrot, 1, max_new=4)
    envs.reset(seed=0, options=asked(0))
    steps = [envs.step(np.array([action])) for action in (2, 2, 1)]
    assert steps[2][0]["tokens"].tolist() == [[2, 4, 2, 2, 1, 2]]
    assert steps[2][4]["num_written"].tolist() == [1]
    assert steps[2][4]["reply"].tolist() == ["aa!"]
    assert (steps[2][1][0], steps[2][2][0], steps[2][3][0]) == (0.25, False, True)


def test_a_turn_is_over_when_its_tokens_are_used_up():
    envs = vector_of(Parrot, 1, max_turn=2)
    envs.reset(seed=0, options=asked(0))
    steps = [envs.step(np.array([action])) for action in (2, 3, 3, 1)]
    # "ab" without EOS is a turn; then "b" with EOS leaves
    assert steps[1][4]["reply"].tolist() == ["ab!"]
    assert steps[3][2].tolist() == [True]
    assert steps[3][0]["tokens"][0, :9].tolist() == [2, 4, 2, 3, 2, 3, 5, 3, 1]


def test_max_turn_is_of_conversations():
    with pytest.raises(ValueError, match="max_turn=3 must be at least 1, and limits turns of a task with worlds"):
        TextGenEnv(task="Copy", max_prompt=9, max_new=9, max_turn=3)
    with pytest.raises(ValueError, match="max_turn=0 must be at least 1"):
        TextGenEnv(**kwargs_of(Parrot, max_turn=0))


def test_the_checkers_pass():
    check_text_env(TextGenEnv(**kwargs_of(Parrot)), num_examples=10)
    check_vector_env(lambda n, mode: vector_of(Parrot, n, mode), num_steps=40)


class Faulty(TextVectorView):
    """Rows in an autoreset mode, told of wrongly by subclasses."""

    def __init__(self, num_envs, mode):
        super().__init__(vector_of(Parrot, num_envs, mode))


class InvertsActed(Faulty):
    def step(self, actions):
        *rest, infos = super().step(actions)
        if "final_info" in infos:
            infos["final_info"]["acted"] = ~infos["final_info"]["acted"]
        return *rest, infos


class TellsAnotherReply(Faulty):
    def step(self, actions):
        *rest, infos = super().step(actions)
        if "reply" in infos:
            infos["reply"] = np.where(infos["_reply"], "b", None)
        return *rest, infos


class CountsReplies(Faulty):
    def step(self, actions):
        *rest, infos = super().step(actions)
        if "final_info" in infos:
            infos["final_info"]["num_tokens"] += infos["final_info"]["num_written"]
        return *rest, infos


class TellsTheNextQuestion(Faulty):
    def step(self, actions):
        *rest, infos = super().step(actions)
        if "final_info" in infos and "example_key" in infos:
            infos["final_info"]["example_key"] = infos["example_key"].copy()
        return *rest, infos


class IgnoresMasks(Faulty):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)


class Drawing(TextGenVectorEnv):
    def reset(self, *, seed=None, options=None):
        if "reset_mask" in (options or {}):
            self._np_random = np.random.default_rng()
        return super().reset(seed=seed, options=options)


def entropy(num_envs, mode):
    """Rows that are reset by chance where they reset themselves."""
    return with_autoreset(Drawing(num_envs, **kwargs_of(Parrot)), mode)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (InvertsActed, "final_info's acted is not what was acted"),
        (TellsAnotherReply, "infos say the reply 'b', the row holds"),
        (CountsReplies, "tokens, the policy wrote"),
        (TellsTheNextQuestion, "final_info says example_key"),
        (IgnoresMasks, "which reset_mask leaves alone"),
        (entropy, r"differs when the same tokens are played once more"),
    ],
    ids=["acted", "reply", "num_tokens", "question", "mask", "entropy"],
)
def test_planted_faults_are_caught(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_vector_env(fault, num_steps=60)


class Remembers(Parrot):
    """What text environments of the field do: the last episode's history is still there."""

    heard = ()

    def reset(self, seed):
        self.seed, self.heard = seed, list(self.heard)
        return "ab"[seed % 2] + "=", {}


class OneForAll(Parrot):
    """Every world is this one."""

    only = None

    def __new__(cls):
        cls.only = cls.only or super().__new__(cls)
        return cls.only


class Unseeded(Parrot):
    count = 0

    def step(self, text):
        Unseeded.count += 1
        return "a" * (Unseeded.count % 7), 0.0, False, False, {}


@pytest.mark.parametrize("world", [Remembers, Unseeded], ids=["remembers", "unseeded"])
def test_worlds_with_a_memory_or_without_a_seed_are_caught(world):
    task = WorldTask(world, num_seeds=64)
    examples = [task.sample(np.random.default_rng(seed), "train") for seed in range(3)]
    with pytest.raises(AssertionError, match=r"reset\(seed\) must clear all that was, and nothing but the seed"):
        check_worlds(task, examples, ["a", "b", "ab", ""])


def test_worlds_that_share_a_game_are_caught():
    task = WorldTask(OneForAll, num_seeds=64)
    examples = [task.sample(np.random.default_rng(seed), "train") for seed in range(6)]
    with pytest.raises(AssertionError, match="make_world must make worlds that share nothing"):
        check_worlds(task, examples, ["a", "bb", "ab", ""])


def test_a_world_that_opens_otherwise_than_its_prompt_is_told_so():
    replay = WorldReplay(WorldTask(Parrot))
    with pytest.raises(ValueError, match=r"Parrot.reset\(1\) said 'b=' and, when the prompt was drawn, 'a='"):
        replay.turn(0, Example("a=", meta={"seed": 1}), ["a"])


def test_lost_worlds_are_told_all_again():
    """A fresh replay that hears the third turn first must reply as the one that heard all three."""
    example, said = Example("a=", meta={"seed": 0}), ["a", "ab", "a"]
    steady, lost = WorldReplay(WorldTask(Parrot)), WorldReplay(WorldTask(Parrot))
    replies = [steady.turn(0, example, said[: turn + 1]) for turn in range(3)]
    assert [reply.reward for reply in replies] == [0.25, 0.25, 0.0]
    assert lost.turn(0, example, said) == replies[2]
    # rows have worlds of their own, and another episode of a row begins anew
    assert steady.turn(1, example, ["a"]).reward == steady.turn(0, example, ["a"]).reward == 0.25


@pytest.mark.filterwarnings("ignore:scoring 'bb' for the prompt:RuntimeWarning")
def test_a_world_that_raises_ends_its_episode_and_is_counted():
    envs = vector_of(Fails, 2)
    envs.reset(seed=0, options=asked(0, 2))
    steps = [envs.step(np.array(column)) for column in ([3, 2], [3, 1], [1, 3])]
    assert (steps[2][1][0], steps[2][2][0]) == (0.0, True)
    assert steps[2][4]["final_info"]["reason"][0] == "error"
    assert (envs.scorer.counters.scored, envs.scorer.counters.errors) == (2, 1)
    raising = vector_of(Fails, 1, on_error="raise")
    raising.reset(seed=0, options=asked(0))
    raising.step(np.array([3]))
    raising.step(np.array([3]))
    with pytest.raises(RuntimeError, match="fallen apart"):
        raising.step(np.array([1]))


@pytest.mark.filterwarnings("ignore:scoring 'bb' for the prompt:RuntimeWarning")
@pytest.mark.usefixtures("importable")
def test_a_world_that_hangs_is_killed_and_the_others_go_on():
    envs = vector_of(Hangs, 2, timeout_seconds=0.5)
    envs.reset(seed=0, options=asked(0, 2))
    columns = ([2, 2], [1, 1], [3, 2], [3, 1], [1, 2], [1, 3], [1, 1])
    steps = [envs.step(np.array(column)) for column in columns]
    # row 1 was paid for "a" and not for the second "a", heard before the kill; its third turn "ab" is new
    assert steps[3][1].tolist() == [0.0, 0.0]
    assert steps[4][4]["final_info"]["reason"][0] == "timeout"
    assert (steps[6][1][1], steps[6][3][1]) == (0.25, True)
    assert envs.scorer.counters.timeouts == 1
    envs.close()


class Slow(Parrot):
    def step(self, text):
        time.sleep(60 if text == "bb" else 0.15)
        return text + "!", 0.125, False, False, {}


@pytest.mark.filterwarnings("ignore:scoring 'bb' for the prompt:RuntimeWarning")
@pytest.mark.usefixtures("importable")
def test_telling_a_world_again_may_take_as_long_as_it_took():
    """Row 0 hangs in its sixth turn; row 1 is told five turns again, 0.75 s, with a limit of 0.6 s for one."""
    envs = vector_of(Slow, 2, max_new=30, timeout_seconds=0.6)
    envs.reset(seed=0, options=asked(0, 2))
    for column in ([1, 1],) * 5 + ([3, 2], [3, 2], [1, 2], [1, 1]):
        _, rewards, terminated, _, _ = envs.step(np.array(column))
    assert (rewards[1], terminated[1]) == (0.125, False)
    assert envs.scorer.counters.timeouts == 1
    envs.close()


def test_what_reset_must_return_is_said():
    class Plain(Parrot):
        def reset(self, seed):
            return "ab="

    with pytest.raises(ValueError, match=r"Plain.reset returned 'ab='; expected \(text, info\)"):
        WorldTask(Plain).sample(np.random.default_rng(0), "train")


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_snapshot_in_mid_conversation_goes_on_exactly(mode):
    actions = np.random.default_rng(5).choice([1, 1, 2, 3], size=(30, 4))
    original = vector_of(Parrot, 4, mode)
    original.reset(seed=3)
    for column in actions[:7]:
        original.step(column)
    saved = json.loads(json.dumps(original.state()))
    resumed = vector_of(Parrot, 4, mode)
    resumed.load_state(saved)
    for column in actions[7:]:
        one, other = original.step(column), resumed.step(column)
        assert all((one[0][key] == other[0][key]).all() for key in one[0])
        assert all((one[index] == other[index]).all() for index in (1, 2, 3))
        assert one[4].keys() == other[4].keys()
