"""Gymnasium's toy-text environments side by side with the worlds made of them."""

import hashlib

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.toy_text import BlackjackEnv, CliffWalkingEnv, FrozenLakeEnv, TaxiEnv

from worldmtp.envs.worlds.adapters import RewardScaling
from worldmtp.envs.worlds.toy_text import ToyText

LAKE_MAP = ["SFFF", "FHFH", "FFFH", "HFFG"]

CASES = {
    "lake": ("FrozenLake", FrozenLakeEnv, {}, "ldru"),
    "dry lake": ("FrozenLake", FrozenLakeEnv, {"is_slippery": False, "map_name": "8x8"}, "ldru"),
    "taxi": ("Taxi", TaxiEnv, {}, "snewpd"),
    "rainy taxi": ("Taxi", TaxiEnv, {"is_rainy": True, "fickle_passenger": True}, "snewpd"),
    "cards": ("Blackjack", BlackjackEnv, {"sab": True}, "sh"),
    "cliff": ("CliffWalking", CliffWalkingEnv, {"is_slippery": True}, "urdl"),
}


def state_in(game, text):
    """Gymnasium's observation, read back from the text by the table of the module."""
    if game == "Blackjack":
        total, _, dealer = text.rstrip("+-=").replace("a", ":").partition(":")
        return (int(total), int(dealer), int("a" in text))
    row, column = int(text[0], 36), int(text[1], 36)
    if game == "Taxi":
        return ((row * 5 + column) * 5 + "RGYBT".index(text[2])) * 4 + "RGYB".index(text[3])
    return row, column


@pytest.mark.parametrize("case", list(CASES))
def test_transitions_are_gymnasiums(case):
    game, make, kwargs, words = CASES[case]
    world, theirs, rng = ToyText(game, kwargs, max_turns=60), make(**kwargs), np.random.default_rng(0)
    num_ended = 0
    for seed in range(12):
        opening, _ = world.reset(seed)
        obs, _ = theirs.reset(seed=seed)
        if game == "FrozenLake":
            assert opening == "/".join("".join(row) for row in theirs.desc.astype(str))
        else:
            assert state_in(game, opening) == (divmod(obs, 12) if game == "CliffWalking" else obs)
        collected = 0.0
        for _ in range(60):
            action = int(rng.integers(len(words)))
            obs, reward, terminated, _, _ = theirs.step(action)
            collected += float(reward)
            reply, paid, ended, truncated, _ = world.step(words[action])
            width = {"FrozenLake": 8 if "map_name" in kwargs else 4, "CliffWalking": 12}.get(game)
            assert state_in(game, reply) == (obs if width is None else divmod(obs, width))
            assert ended == terminated
            low, high = {"FrozenLake": (0, 1), "Taxi": (-60, 20), "Blackjack": (-1, 1), "CliffWalking": (-60, -13)}[
                game
            ]
            expected = (min(max(collected, low), high) - low) / (high - low) if terminated else 0.0
            assert paid == pytest.approx(expected, abs=1e-15)
            if terminated or truncated:
                num_ended += terminated
                break
    assert num_ended > 0 or game in ("Taxi", "CliffWalking")  # which nobody ends by chance in so few turns


def test_random_maps_are_gymnasiums_and_differ_by_seed():
    world = ToyText("FrozenLake", random_map={"size": 4, "p": 0.7})
    openings = {}
    for seed in range(30):
        opening, info = world.reset(seed)
        openings.setdefault(opening, seed)
        assert info == {"hidden": ""}  # the map is told and must not be in two splits
        theirs = FrozenLakeEnv(desc=opening.split("/"))
        digest = hashlib.blake2b(opening.encode(), digest_size=8).hexdigest()
        theirs.reset(seed=int(digest, 16) // 2**33)
        for word, action in (("r", 2), ("d", 1), ("d", 1)):
            state, reward, terminated, *_ = theirs.step(action)
            reply, paid, ended, *_ = world.step(word)
            letter = opening.split("/")[state // 4][state % 4]
            assert reply == f"{state // 4}{state % 4}" + (letter if terminated else "")
            assert (paid, ended) == (reward, terminated)
            if ended:
                break
    assert len(openings) > 20


def story_of(world, seed, words):
    told = [world.reset(seed)[0]]
    for word in words:
        reply, paid, terminated, truncated, _ = world.step(word)
        told.append((reply, paid, terminated, truncated))
        if terminated or truncated:
            break
    return told


@pytest.mark.parametrize("name", ["FrozenLakeRandom", "Taxi", "Blackjack", "GuessNumber", "Pig", "GridWorld"])
def test_a_key_holds_all_that_decides_an_episode(name):
    """Worlds of one key tell one story, whichever seeds made them; FrozenLake's slips differed in 627 of 1,501 maps."""
    task = gymnasium.make(f"worldmtp/{name}-v0").unwrapped.task
    seeds = {}
    for index in range(1500):
        example = task.sample(np.random.default_rng(index), "train")
        seeds.setdefault(example.key, set()).add(example.meta["seed"])
    shared = [sorted(found)[:2] for found in seeds.values() if len(found) > 1]
    # Of the others the seed is hidden.
    assert bool(shared) == (name in ("FrozenLakeRandom", "GuessNumber", "GridWorld"))
    words = {"GuessNumber": ["50", "25", "75"], "GridWorld": list("nesw"), "Taxi": list("snewpd")}.get(
        name, list("ldru")
    )
    rng, world = np.random.default_rng(0), task.make_world()
    for one, other in shared[:100]:
        said = [words[index] for index in rng.integers(len(words), size=12)]
        assert story_of(world, one, said) == story_of(world, other, said)


def test_a_map_says_nothing_of_its_slips_that_can_be_read():
    """One step to the right from the start slips up (stays), right or down, a third each: 300 maps, 5.5 sigma."""
    world = ToyText("FrozenLake", random_map={"size": 8})
    fates = []
    for seed in range(300):
        world.reset(seed)
        fates.append(world.step("r")[0][:2])
    assert all(abs(fates.count(cell) - 100) < 45 for cell in ("00", "01", "10"))


def test_a_dry_lake_by_hand():
    world = ToyText("FrozenLake", {"is_slippery": False, "desc": LAKE_MAP})
    assert world.reset(0) == ("SFFF/FHFH/FFFH/HFFG", {"optimal_value": 1.0})  # one map: seeds tell episodes apart
    assert [world.step(text)[0] for text in ("d", "l", "up", " d ", "r", "d", "r")] == [
        "10", "10", "?", "20", "21", "31", "32",
    ]  # fmt: skip
    assert world.step("r") == ("33G", 1.0, True, False, {"is_success": True})
    world.reset(0)
    world.step("r")
    assert world.step("d") == ("11H", 0.0, True, False, {"is_success": False})


def test_a_lake_that_never_changes_is_not_told():
    world = ToyText("FrozenLake", {"is_slippery": False}, max_turns=25, tells_map=False)
    assert world.reset(0) == world.reset(9) == ("00", {"optimal_value": 1.0})
    assert [world.step(text)[0] for text in "ddrrdr"] == ["10", "20", "21", "22", "32", "33G"]
    starts = ToyText("FrozenLake", {"desc": ["SS", "HG"], "is_slippery": False}, tells_map=False)
    assert {starts.reset(seed)[0] for seed in range(20)} == {"00", "01"}
    assert starts.reset(0)[1]["hidden"] == ""  # the start decides the episode, and there are two
    starts = ToyText("FrozenLake", {"desc": ["SS", "HG"], "is_slippery": False})
    assert starts.reset(0) == ("SS/HG", {"optimal_value": 1.0})


def slips(success_rate, num_moves=3000):
    """How often a move to the right from the north-western corner led right, down and nowhere."""
    world = ToyText("FrozenLake", {"map_name": "8x8", "success_rate": success_rate}, tells_map=False)
    told = []
    for seed in range(num_moves):
        world.reset(seed)
        told.append(world.step("r")[0])
    return [told.count(place) / num_moves for place in ("01", "10", "00")]


@pytest.mark.parametrize("success_rate", [0.8, 1 / 3])
def test_a_move_slips_to_either_side(success_rate):
    other = (1 - success_rate) / 2
    # Three standard errors of 3,000 draws are .022 to .027.
    assert slips(success_rate) == pytest.approx([success_rate, other, other], abs=0.027)


def test_the_shortest_cliff_walk_earns_one_and_a_fall_costs():
    world = ToyText("CliffWalking", max_turns=30)
    assert world.reset(0) == ("30", {"optimal_value": 1.0})
    steps = [world.step(text) for text in "u" + "r" * 11 + "d"]
    assert [step[0] for step in steps[-2:]] == ["2b", "3b"]
    assert steps[-1][1:3] == (1.0, True)
    world.reset(0)
    assert world.step("r")[:2] == ("30", 0.0)  # -100, and back to the start
    assert [world.step(text) for text in "u" + "r" * 11 + "d"][-1][1] == 0.0


def test_a_taxi_ride_by_hand():
    world = ToyText("Taxi", max_turns=30)
    seed = next(seed for seed in range(3000) if world.reset(seed)[0] == "00RG")
    world.reset(seed)
    # From R in the corner to G: pick up; two south, since walls are between the columns above; four east, two north.
    ride = ["p", "s", "s", "e", "e", "e", "e", "n", "n"]
    replies = [world.step(text)[0] for text in ride]
    assert replies == ["00TG", "10TG", "20TG", "21TG", "22TG", "23TG", "24TG", "14TG", "04TG"]
    # Nine turns at -1 and 20 for the delivery: 11, of -30 to 20.
    assert world.step("d") == ("04GG", pytest.approx(41 / 50, abs=1e-15), True, False, {"is_success": True})


def test_blackjack_tells_the_outcome():
    world, outcomes = ToyText("Blackjack"), set()
    for seed in range(60):
        world.reset(seed)
        reply, paid, *_ = world.step("s")
        outcomes.add((reply[-1], paid))
    assert outcomes == {("+", 1.0), ("=", 0.5), ("-", 0.0)}
    world.reset(0)
    replies = [world.step("h") for _ in range(21)]
    bust = next(step for step in replies if step[2])
    assert bust[0].endswith("-")
    assert int(bust[0][:2]) > 21
    assert bust[1] == 0.0


def test_a_game_cut_short_pays_nothing():
    world = ToyText("Blackjack", max_turns=2)
    world.reset(0)
    assert world.step("stand") == ("?", 0.0, False, False, {"is_success": False, "reason": "malformed"})
    assert world.step("")[1:4] == (0.0, False, True)


def test_what_is_hidden():
    assert ToyText("Taxi").reset(3)[1]["hidden"] == ""
    for game, kwargs in (
        ("Taxi", {"is_rainy": True}),
        ("Taxi", {"fickle_passenger": True}),
        ("Blackjack", {}),
        ("FrozenLake", {}),
        ("CliffWalking", {"is_slippery": True}),
        ("CliffWalking", {}),
        ("FrozenLake", {"is_slippery": False}),
    ):
        assert "hidden" not in ToyText(game, kwargs).reset(3)[1]  # the seed is


def test_other_words_and_returns():
    world = ToyText("FrozenLake", {"is_slippery": False}, actions=["west", "south", "east", "north"], returns=(0, 2))
    world.reset(0)
    steps = [world.step(text) for text in ("south", "south", "east", "east", "south", "east")]
    assert steps[-1][:2] == ("33G", 0.5)


def test_impossible_arguments():
    with pytest.raises(ValueError, match="game='FrozenLakes' is unknown; did you mean 'FrozenLake'"):
        ToyText("FrozenLakes")
    with pytest.raises(ValueError, match="must be 2 different words for Blackjack"):
        ToyText("Blackjack", actions=["s", "s"])
    for kwargs in ({"game": "Taxi"}, {"game": "FrozenLake", "random_map": {"size": 4}}):
        with pytest.raises(ValueError, match="tells_map=False is for FrozenLake on a map that is always the same"):
            ToyText(**kwargs, tells_map=False)
    with pytest.raises(ValueError, match=r"random_map=.* is for FrozenLake without desc or map_name"):
        ToyText("Taxi", random_map={"size": 4})
    with pytest.raises(ValueError, match="max_turns=0 must be at least 1"):
        ToyText("Taxi", max_turns=0)
    with pytest.raises(ValueError, match=r"returns=\(1, 0\) must be two finite numbers"):
        ToyText("Taxi", returns=(1, 0))


def test_settlements_by_hand():
    settlement = RewardScaling((-10, 10.0))
    settlement.begin()
    assert [settlement.pay(reward, last) for reward, last in ((-1.0, False), (-4.0, False), (10.0, True))] == [
        0,
        0,
        0.75,
    ]
    settlement.begin()
    assert settlement.pay(-50.0, True) == 0.0
    settlement.begin()
    assert settlement.pay(50.0, True) == 1.0


def test_gymnasium_still_registers_what_is_taken_from_it():
    for name in ("FrozenLake", "Blackjack", "CliffWalking", "Taxi"):
        assert any(spec.name == name and spec.namespace is None for spec in gymnasium.registry.values())
