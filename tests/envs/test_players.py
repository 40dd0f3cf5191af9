"""Scripted players: what they earn against a worth that is worked another way, and that they know what is said only."""

import itertools

import numpy as np
import pytest
from gymnasium.envs.toy_text import BlackjackEnv, FrozenLakeEnv

from worldmtp.envs import make_task
from worldmtp.envs.catalogue import LAKES, WORLD_TASKS
from worldmtp.envs.worlds.dice import Pig, optimal_decision
from worldmtp.envs.worlds.grid_world import GridWorld
from worldmtp.envs.worlds.players import PlayedWorld, WorldWithMoves, demonstrate, play, random_player
from worldmtp.envs.worlds.toy_players import BestHand, best_play, dealer_sums, read_hand, with_card
from worldmtp.envs.worlds.toy_text import ToyText

NUM_EPISODES = 120


def world_of(name):
    return make_task(name, WORLD_TASKS[name][1]["task_kwargs"]).make_world()


@pytest.mark.parametrize("name", WORLD_TASKS)
def test_a_player_earns_what_its_world_says_and_chance_earns_less(name):
    world, rng = world_of(name), np.random.default_rng(0)
    assert isinstance(world, PlayedWorld)
    assert isinstance(world, WorldWithMoves)
    good = [play(world, seed, world.player()) for seed in range(NUM_EPISODES)]
    lucky = [play(world, seed, random_player(world, rng)).total for seed in range(NUM_EPISODES)]
    earned = np.array([episode.total for episode in good])
    assert earned.mean() > np.mean(lucky) + 0.1
    if name not in ("GridWorld", "FrozenLakeRandom"):  # which do not say
        missed = earned - np.array([episode.info["optimal_value"] for episode in good])
        assert abs(missed.mean()) <= 4 * missed.std() / NUM_EPISODES**0.5 + 1e-9


@pytest.mark.parametrize("name", WORLD_TASKS)
def test_no_move_is_malformed(name):
    world, rng = world_of(name), np.random.default_rng(1)
    for seed in range(20):
        world.reset(seed)
        while True:
            moves = world.moves()
            assert len(set(moves)) == len(moves) > 0
            reply, _, terminated, truncated, info = world.step(str(rng.choice(moves)))
            assert reply != "?"
            assert info.get("reason") != "malformed"
            if terminated or truncated:
                break


def test_a_demonstration_is_what_the_player_says():
    world = ToyText("FrozenLake", {"is_slippery": False}, tells_map=False)
    assert "".join(demonstrate(world, 0)) == "ddrdrr"  # six moves, and d comes before r
    assert demonstrate(ToyText("CliffWalking"), 0) == [*"u", *"r" * 11, "d"]


def test_the_best_player_of_a_small_lake_by_hand():
    """S G in a row, success rate .5, two turns: right, else down or up, of which both leave one in place."""
    env = FrozenLakeEnv(desc=["SG"], success_rate=0.5)
    values, actions = best_play(env.P, 2, 0.0, lambda turn, reward: reward)
    # Right reaches the goal by .5. Down slips to the right by .25, up too. With two turns: 1 - .5^2.
    assert values[:, 0] == pytest.approx([0.75, 0.5, 0.0])
    assert actions[:, 0].tolist() == [2, 2]
    late, _ = best_play(env.P, 2, 0.0, lambda turn, reward: reward / (1 + turn))
    assert late[0, 0] == pytest.approx(0.5 + 0.5 * 0.25)


def sequences(num_turns):
    """The largest mean return of any fixed list of moves, on a lake where moves do not slip."""
    world = ToyText("FrozenLake", {"desc": ["SFF", "HFH", "FFG"], "is_slippery": False}, max_turns=num_turns)
    best = 0.0
    for moves in itertools.product("ldru", repeat=num_turns):
        world.reset(0)
        total = 0.0
        for move in moves:
            _, reward, terminated, _, _ = world.step(move)
            total += reward
            if terminated:
                break
        best = max(best, total)
    return best


@pytest.mark.parametrize("num_turns", [3, 4])
def test_what_a_dry_lake_is_worth_is_what_some_list_of_moves_earns(num_turns):
    kwargs = {"desc": ["SFF", "HFH", "FFG"], "is_slippery": False}
    told = ToyText("FrozenLake", kwargs, max_turns=num_turns).reset(0)[1]["optimal_value"]
    assert told == sequences(num_turns) == (num_turns == 4)


def test_the_dealers_sums_are_those_of_gymnasium():
    env, sums = BlackjackEnv(), []
    for seed in range(3000):
        env.reset(seed=seed)
        env.dealer = [6, env.dealer[1]]
        env.step(0)
        sums.append(min(env.dealer[0] and sum(env.dealer) + 10 * (1 in env.dealer and sum(env.dealer) <= 11), 22))
    expected = dealer_sums(6)
    assert sum(expected.values()) == pytest.approx(1.0)
    for total, chance in expected.items():
        assert sums.count(total) / 3000 == pytest.approx(chance, abs=4 * (chance / 3000) ** 0.5)


def test_hands_by_hand():
    assert with_card((0, False), 1) == (11, True)
    assert with_card((11, True), 1) == (12, True)
    assert with_card((18, True), 7) == (15, False)  # the ace counts 1 from here on
    assert with_card((15, False), 1) == (16, False)
    assert (read_hand("14:6"), read_hand("18a10")) == (((14, False), 6), ((18, True), 10))
    best = BestHand(lambda reward: reward)
    # 20 against a dealer's 20 is a draw: it loses to 21 only.
    chances = dealer_sums(10)
    assert best.value((20, False), 10, 5) == pytest.approx(1 - chances[20] - 2 * chances[21])
    # The table that every book has: hard 16 sticks against 6 and hits against 10, soft 17 hits, 12 sticks against 4.
    assert best.sticks((16, False), 6, 8)
    assert not best.sticks((16, False), 10, 8)
    assert not best.sticks((17, True), 6, 8)
    assert best.sticks((12, False), 4, 8)
    assert not best.sticks((12, False), 3, 8)
    # A card more would be cut short and pay nothing, as little as a hand that is lost.
    assert BestHand(lambda reward: (reward + 1) / 2).sticks((4, False), 10, 1)


def test_pigs_player_keeps_the_books():
    world = Pig(min_target=12, max_target=12, min_decisions=8, max_decisions=8)
    for seed in range(40):
        opening, _ = world.reset(seed)
        player, reply, over = world.player(), opening, False
        while not over:
            said = player(reply)
            assert said == optimal_decision(12, world.banked, world.at_risk, world.decisions)
            reply, _, over, _, _ = world.step(said)


def test_the_explorer_walks_to_what_it_sees_and_back_from_dead_ends():
    world = GridWorld(grid=["..S.", "##.#", "G..."], max_turns=16)
    # East comes first and is a dead end; back, and south, which comes before west; east again, back, on to the goal.
    assert "".join(demonstrate(world, 0)) == "ew" + "ss" + "ew" + "ww"


def test_players_know_only_what_is_said():
    """The same replies give the same moves, whatever world is there."""
    here, there = GridWorld(size=5, max_turns=40), GridWorld(size=5, max_turns=40)
    there.reset(99)
    for seed in range(10):
        reply, _ = here.reset(seed)
        one, other = here.player(), there.player()
        for _ in range(6):
            said = one(reply)
            assert other(reply) == said
            reply, _, terminated, truncated, _ = here.step(said)
            if terminated or truncated:
                break


def test_chance_says_every_move_as_often():
    world = world_of("Pig")
    world.reset(0)
    player = random_player(world, np.random.default_rng(0))
    said = [player("") for _ in range(1000)]
    assert abs(said.count("r") - 500) < 64  # four standard deviations


class Endless:
    def reset(self, seed):
        return "again", {}

    def step(self, text):
        return "again", 0.0, False, False, {}


def test_a_world_without_an_end_is_an_error():
    with pytest.raises(RuntimeError, match="Endless of seed 3 did not end in 10000 turns"):
        play(Endless(), 3, lambda reply: "x")


def test_the_lakes_are_what_their_names_say():
    values = {name: world_of(name).reset(0)[1]["optimal_value"] for name in LAKES}
    assert values["FrozenLake"] == values["FrozenLake8x8"] == 1.0
    assert values["FrozenLakeSlippery"] > values["FrozenLakeIcy"] > 0.4
    assert values["FrozenLake8x8Slippery"] > values["FrozenLake8x8Icy"] > 0.6


def test_a_player_that_is_no_function_is_told_what_it_is():
    class Named(Endless):
        def player(self):
            return "r"

    with pytest.raises(TypeError, match=r"player\(\) of Named returned 'r'; expected a function"):
        demonstrate(Named(), 0)
