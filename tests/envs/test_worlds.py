"""What holds of every world of the catalogue, and how one's own becomes a task."""

import random

import gymnasium
import numpy as np
import pytest

from worldmtp.envs import make_task, register_task
from worldmtp.envs.catalogue import LAKES, WORLD_TASKS
from worldmtp.envs.dataset import draw_examples
from worldmtp.envs.task import TextWorld, TurnTask
from worldmtp.envs.tokenizer import make_tokenizer
from worldmtp.envs.worlds.task import WorldTask

NO_IDS = np.zeros(0, dtype=np.int64)
SAID = {
    "GuessNumber": [str(number) for number in range(100)],
    "GridWorld": list("nesw"),
    "Pig": list("rh"),
    **{name: list("ldru") for name in LAKES},
    "FrozenLakeRandom": list("ldru"),
    "KeyDoor": list("nesw"),
    "Switches": list("abcd"),
    "Taxi": list("snewpd"),
    "TaxiDry": list("snewpd"),
    "Blackjack": list("sh"),
}
NAMES = list(SAID)


def task_of(name):
    return make_task(name, WORLD_TASKS[name][1]["task_kwargs"])


def converse(world, seed, rng, words):
    """An episode of random words, one in five of them nonsense: opening, replies, rewards and how it ended."""
    opening, _ = world.reset(seed)
    replies, rewards = [], []
    while True:
        text = "zz" if rng.random() < 0.2 else words[rng.integers(len(words))]
        reply, reward, terminated, truncated, _ = world.step(text)
        replies.append(reply)
        rewards.append(reward)
        assert not (terminated and truncated)
        if terminated or truncated:
            return opening, replies, rewards, terminated


def test_the_catalogue_is_complete():
    assert set(WORLD_TASKS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_worlds_are_decided_by_seed_and_texts_and_pay_within_bounds(name):
    task = task_of(name)
    first, second = task.make_world(), task.make_world()
    assert isinstance(task, TurnTask)
    assert isinstance(first, TextWorld)
    random_state, numpy_state = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    for seed in range(12):
        episode = converse(first, seed, np.random.default_rng(seed), SAID[name])
        assert converse(second, seed, np.random.default_rng(seed), SAID[name]) == episode
        assert 0.0 <= sum(episode[2]) <= 1.0
        assert min(episode[2]) >= 0.0
    assert random.getstate() == random_state
    now = np.random.get_state(legacy=False)  # noqa: NPY002
    assert (now["state"]["key"] == numpy_state["state"]["key"]).all()
    assert now["state"]["pos"] == numpy_state["state"]["pos"]


@pytest.mark.parametrize("name", NAMES)
def test_budgets_and_alphabets_fit_and_prompts_reach_their_bound(name):
    env_kwargs = WORLD_TASKS[name][1]
    tokenizer, task = make_tokenizer(env_kwargs["tokenizer"]), task_of(name)
    world, longest_prompt, num_turns, longest_reply = task.make_world(), 0, 0, 0
    for seed in range(120):
        opening, replies, _, _ = converse(world, seed, np.random.default_rng(seed), SAID[name])
        longest_prompt = max(longest_prompt, len(tokenizer.encode(opening)))
        longest_reply = max(longest_reply, *(len(tokenizer.encode(reply)) for reply in replies))
        num_turns = max(num_turns, len(replies))
    assert longest_prompt == env_kwargs["max_prompt"]
    assert max(len(tokenizer.encode(word)) for word in SAID[name]) + 1 <= env_kwargs["max_turn"]
    assert num_turns * (env_kwargs["max_turn"] + longest_reply) <= env_kwargs["max_new"]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "GuessNumber"])
def test_saying_the_same_in_every_turn_earns_no_more_than_stated(name):
    """Each constant text over fixed seeds; few rides, which are long.

    The bound of GuessNumber is worked by hand in its own tests: hits are too rare to be counted here.
    """
    task, rng = task_of(name), np.random.default_rng(0)
    examples = [task.sample(rng, "train") for _ in range(20 if name == "Taxi" else 120)]
    for word in SAID[name]:
        assert np.mean([task.score(example, word, NO_IDS).value for example in examples]) <= task.probe_bound


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_move_earns_nothing(name):
    task, rng = task_of(name), np.random.default_rng(0)
    assert [task.score(task.sample(rng, "train"), "zz", NO_IDS).value for _ in range(20)] == [0.0] * 20


@pytest.mark.parametrize("name", NAMES)
def test_held_out_episodes_are_held_out(name):
    task = task_of(name)
    number = 32 if name == "TaxiDry" else 64  # a fifth of its 300 episodes is held out
    train, heldout = draw_examples(task, "train", 256, 0), draw_examples(task, "heldout", number, 0, distinct=True)
    assert not {example.key for example in train} & {example.key for example in heldout}
    if name == "FrozenLakeRandom":
        assert not {example.prompt for example in train} & {example.prompt for example in heldout}


def test_two_seeds_of_one_episode_are_one_example():
    task = WorldTask("worldmtp.envs.worlds.guess_number:GuessNumber", {"max_number": 3, "min_size": 4, "max_size": 4})
    rng = np.random.default_rng(0)
    assert len({task.sample(rng, "train").key for _ in range(100)}) == 4
    assert task.universe_size is None
    assert WorldTask(Counter, num_seeds=5).universe_size == 5
    assert task_of("GuessNumber").universe_size == 10288


class Counter:
    """Says how often it was spoken to, and pays for the last time."""

    def __init__(self, limit=2):
        self.limit = limit

    def reset(self, seed):
        self.count = 0
        return f"{seed % 10}=", {}

    def step(self, text):
        self.count += 1
        return str(self.count), float(self.count == self.limit), self.count == self.limit, False, {}


def test_a_class_of_worlds_is_a_task(unregistered):
    register_task("Counter", max_prompt=2, max_new=20, max_turn=3, probe_bound=1.0, task_kwargs={"limit": 3})(Counter)
    task = make_task("Counter", {"limit": 3})
    assert (type(task), task.probe_bound, task.world_kwargs) == (WorldTask, 1.0, {"limit": 3})
    example = task.sample(np.random.default_rng(0), "train")
    assert example.hidden == str(example.meta["seed"])
    assert task.score(example, "a", NO_IDS).value == 1.0
    env = gymnasium.make("worldmtp/Counter-v0", pool_size=8)
    env.reset(seed=0)
    rewards = [env.step(1)[1] for _ in range(3)]  # EOS: an empty turn
    assert rewards == [0.0, 0.0, 1.0]


def test_a_class_of_worlds_by_path_is_a_task():
    task = make_task("worldmtp.envs.worlds.dice:Pig", {"max_decisions": 5})
    assert type(task) is WorldTask
    assert task.make_world().max_decisions == 5


def test_registering_a_world_twice_or_wrongly(unregistered):
    register_task("Counter", max_prompt=2, max_new=20)(Counter)
    register_task("Counter", max_prompt=2, max_new=20)(Counter)
    with pytest.raises(ValueError, match=r"task 'Counter' is already registered by .*:Counter"):
        register_task("Counter", max_prompt=2, max_new=20)(type("Other", (Counter,), {}))
    with pytest.raises(TypeError, match="'Scored' is a class: its step pays instead of register_task"):
        register_task("Scored", max_prompt=2, max_new=20, score=lambda example, text: 1.0)(Counter)


def test_what_is_no_world_is_told_so():
    with pytest.raises(TypeError, match=r"made a dict without reset\(seed\) and step\(text\)"):
        WorldTask(dict).make_world()
    with pytest.raises(ValueError, match=r"world 'worldmtp.envs.worlds.dice:Pigs' cannot be imported"):
        WorldTask("worldmtp.envs.worlds.dice:Pigs")
    with pytest.raises(ValueError, match="num_seeds=0 must be positive"):
        WorldTask(Counter, num_seeds=0)
