"""Dice of an episode: the start is a question, luck is the episode's; and what worlds tell reaches the infos."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from worldmtp.envs import Example, TextGenEnv, TextGenVectorEnv
from worldmtp.envs.scoring import WorldReplay
from worldmtp.envs.vector_checks import check_vector_env
from worldmtp.envs.worlds.dice import Pig
from worldmtp.envs.worlds.task import WorldTask
from worldmtp.envs.worlds.toy_text import ToyText

LAKE = {"game": "FrozenLake", "env_kwargs": {"desc": ["SF", "FG"], "success_rate": 0.8}, "max_turns": 4}
NO_CHANCE = {"game": "FrozenLake", "env_kwargs": {"desc": ["SF", "FG"], "is_slippery": False}, "max_turns": 4}


def fields_of(dice: str | None = None, lake: dict[str, Any] = LAKE, **changes: Any) -> dict[str, Any]:
    task = WorldTask(lambda: ToyText(**lake, tells_map=False), num_seeds=200, dice=dice)
    alphabet = {"kind": "char", "alphabet": "ldru0123456789HG?"}
    budgets = {"max_prompt": 2, "max_new": 16, "max_turn": 1, "pool_size": 8}
    return {"task": task, "tokenizer": alphabet} | budgets | changes


def rows(num_envs: int = 4, dice: str | None = None, lake: dict[str, Any] = LAKE, **changes: Any) -> TextGenVectorEnv:
    return TextGenVectorEnv(num_envs, **fields_of(dice, lake), **changes)


def down(env: TextGenVectorEnv) -> np.ndarray:
    return np.full(env.num_envs, env.tokenizer.encode("d")[0])


def first_replies(env: TextGenVectorEnv, **options: Any) -> list[str]:
    env.reset(options=options)
    return env.step(down(env))[4]["reply"].tolist()


def test_the_dice_decide_the_slips_and_nothing_else() -> None:
    """Down from the corner of 2 x 2: 10 with .8, else 00 or 01 with .1 each; four standard errors, 6e-5 by chance."""
    world = ToyText(**LAKE, tells_map=False)
    found = []
    for dice in range(400):
        assert world.reset(1)[0] == "00"
        world.throw_dice(dice)
        found.append(world.step("d")[0])
    assert set(found) == {"10", "00", "01"}
    assert found.count("10") / 400 == pytest.approx(0.8, abs=0.08)
    again = [found[dice] for dice in (3, 7)]
    for dice, expected in zip((3, 7), again, strict=True):
        world.reset(2)  # another start of the same opening
        world.throw_dice(dice)
        assert world.step("d")[0] == expected


def test_a_random_map_slips_by_the_dice() -> None:
    world = ToyText("FrozenLake", {"success_rate": 0.34}, random_map={"size": 4, "p": 0.8})
    assert world.has_dice
    told = set()
    for dice in range(30):
        world.reset(5)
        world.throw_dice(dice)
        told.add(world.step("d")[0])
    assert len(told) > 1


def test_pig_rolls_what_the_generator_of_the_dice_says() -> None:
    world = Pig(20, 20, 6, 6)
    world.reset(0)
    world.throw_dice(11)
    expected = np.random.default_rng(11).integers(1, 7, size=3).tolist()
    rng = np.random.default_rng(11)
    assert [world.step("r")[0] for _ in range(3)] == [str(rng.integers(1, 7)) for _ in range(3)]
    assert len(expected) == 3


def test_blackjack_keeps_what_is_shown_and_deals_the_rest_anew() -> None:
    world = ToyText("Blackjack")
    hidden = set()
    for dice in range(30):
        opening, _ = world.reset(4)
        shown, hand = world.env.dealer[0], list(world.env.player)
        world.throw_dice(dice)
        assert (world.env.dealer[0], list(world.env.player)) == (shown, hand)
        hidden.add(world.env.dealer[1])
    assert len(hidden) > 3
    assert opening == world._opening(world.env)


def test_a_fickle_passenger_makes_up_his_mind_by_the_dice() -> None:
    """Three in ten change it: 60 of 200, four standard errors are 26."""
    world = ToyText("Taxi", {"fickle_passenger": True})
    assert world.has_dice
    minds = []
    for dice in range(200):
        world.reset(0)
        world.throw_dice(dice)
        minds.append(bool(world.env.fickle_step))
    assert 34 <= sum(minds) <= 86


def test_a_passenger_who_was_moved_does_not_think_again_whatever_dice_are_thrown() -> None:
    """He boards on the left, where there is no wall below; standing still decides nothing, and the first move all."""
    world = ToyText("Taxi", {"fickle_passenger": True})
    minds: dict[str, set[bool]] = {"boarded": set(), "stood": set(), "moved": set()}
    for dice in range(60):
        world.reset(0)
        world.env.s = world.env.encode(0, 0, 0, 1)  # a taxi at the passenger's place
        world.env.fickle_step = False
        for name, word in (("boarded", "p"), ("stood", "w"), ("moved", "s")):
            world.step(word)
            world.throw_dice(dice)
            minds[name].add(bool(world.env.fickle_step))
            world.env.fickle_step = False
    assert minds == {"boarded": {False, True}, "stood": {False, True}, "moved": {False}}


def test_a_pool_of_starts_is_no_set_of_fates() -> None:
    """One question of the pool, asked a hundred times: with dice of the episode it turns out in three ways."""
    assert len(set(first_replies(rows(100), indices=[0] * 100))) == 3
    assert len(set(first_replies(rows(100, "start"), indices=[0] * 100))) == 1


def test_a_group_shares_its_question_and_not_its_luck() -> None:
    env = rows(60, group_size=60)
    assert len(set(first_replies(env))) == 3
    assert len({env.example_of(row).key for row in range(60)}) == 1


def test_the_seed_of_the_environment_decides_all() -> None:
    told = []
    for _ in range(2):
        env = rows(20)
        env.reset(seed=7)
        told.append([env.step(down(env))[4]["reply"].tolist(), first_replies(env)])
    assert told[0] == told[1]


def test_a_given_example_brings_its_luck() -> None:
    """That of its dice, or of its world's seed; so a single env plays a row's episode again, to the bit."""
    env = rows(30)
    env.reset(seed=3)
    examples = [env.example_of(row) for row in range(30)]
    expected = env.step(down(env))[4]["reply"].tolist()
    assert len(set(expected)) > 1
    assert first_replies(env, prompts=examples) == expected
    single = TextGenEnv(**fields_of())
    for example, reply in zip(examples[:6], expected, strict=False):
        single.reset(options={"prompts": [example]})
        assert single.step(down(env)[0])[4]["reply"] == reply
    bare = [Example(example.prompt, meta={"seed": example.meta["seed"]}, hidden=example.hidden) for example in examples]
    told = first_replies(env, prompts=bare)
    assert told == first_replies(env, prompts=bare)
    by_seed: dict[int, set[str]] = {}
    for example, reply in zip(bare, told, strict=True):
        by_seed.setdefault(example.meta["seed"], set()).add(reply)
    assert all(len(replies) == 1 for replies in by_seed.values())


def test_a_killed_world_is_told_again_with_the_same_dice() -> None:
    """A fresh process hears the history; the dice of another episode of the same start are not taken for these."""
    task = fields_of()["task"]
    drawn = task.sample(np.random.default_rng(0), "train")
    fates = [Example(drawn.prompt, meta={**drawn.meta, "dice": dice}, hidden=drawn.hidden) for dice in range(20)]
    living, told = WorldReplay(task), []
    for example in fates:
        said = ("d",)
        first = living.turn(0, example, said)
        told.append((first.text, None if first.terminated else living.turn(0, example, ("d", "r")).text))
    assert len(set(told)) > 2
    assert any(second is not None for _, second in told)
    for example, (first, second) in zip(fates, told, strict=True):
        if second is not None:
            assert WorldReplay(task).turn(0, example, ("d", "r")).text == second
        assert living.turn(0, example, ("d",)).text == first


def test_a_snapshot_goes_on_with_the_dice() -> None:
    env, other = rows(40), rows(40)
    env.reset(seed=1)
    env.step(down(env))
    state = json.loads(json.dumps(env.state()))
    other.load_state(state)
    for _ in range(3):
        told = [played.step(down(played))[4] for played in (env, other)]
        assert told[0]["reply"].tolist() == told[1]["reply"].tolist()
    assert first_replies(env) == first_replies(other), "the generator goes on as well"
    del state["dice"]
    other.load_state(state)  # of a release without dice: the worlds' seeds decide
    assert all("dice" not in other.example_of(row).meta for row in range(40))


def test_where_nothing_is_left_to_chance_no_dice_are_thrown() -> None:
    env = rows(8, lake=NO_CHANCE)
    env.reset(seed=0)
    assert all("dice" not in env.example_of(row).meta for row in range(8))
    assert "dice" not in env.state()


def test_dice_that_nobody_has_are_refused() -> None:
    with pytest.raises(ValueError, match="leaves nothing to chance"):
        rows(2, "episode", NO_CHANCE)
    with pytest.raises(ValueError, match="dice='each'"):
        fields_of("each")
    assert rows(2, "episode").num_envs == 2


@pytest.mark.parametrize("mode", [AutoresetMode.DISABLED, AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_dice_hold_in_all_autoreset_modes(mode: AutoresetMode, assert_parity: Callable[..., None]) -> None:
    """Rows and single envs of the rows' own examples play alike, infos of worlds included."""
    from worldmtp.envs import Autoreset

    env = rows(4)
    wrapped = env if mode is AutoresetMode.DISABLED else Autoreset(env, mode)
    singles = [TextGenEnv(**fields_of()) for _ in range(4)]
    assert_parity(wrapped, singles, np.random.default_rng(0), num_steps=40)


def test_the_checker_finds_nothing() -> None:
    from worldmtp.envs import Autoreset

    check_vector_env(
        lambda number, mode: rows(number) if mode is AutoresetMode.DISABLED else Autoreset(rows(number), mode), 4, 60
    )


def test_what_the_world_tells_reaches_the_infos() -> None:
    """The value of the start in a reset, success with a reply, both at the end; what is hidden stays so.

    On ice without slips down and right lead to the goal, so that the best player earns 1.
    """
    env = rows(2, lake=NO_CHANCE)
    _, infos = env.reset(seed=0)
    assert infos["world"]["optimal_value"].tolist() == [1.0, 1.0]
    assert infos["_world"].all()
    assert "hidden" not in infos["world"]
    _, _, _, _, infos = env.step(down(env))
    assert infos["reply_info"]["is_success"].tolist() == [False, False]
    right = np.array(env.tokenizer.encode("ru"))
    _, _, terminated, _, infos = env.step(right)
    assert terminated.tolist() == [True, False]
    told = infos["final_info"]
    assert (bool(told["reply_info"]["is_success"][0]), told["world"]["optimal_value"][0]) == (True, 1.0)
    single = TextGenEnv(**fields_of(lake=NO_CHANCE))
    assert single.reset(seed=0)[1]["world"] == {"optimal_value": 1.0}
    assert single.step(down(env)[0])[4]["reply_info"] == {"is_success": False}
    ended = single.step(right[0])[4]
    assert (ended["world"], ended["reply_info"]) == ({"optimal_value": 1.0}, {"is_success": True})


def test_a_snapshot_keeps_what_a_given_example_tells() -> None:
    env, other = rows(1), rows(1)
    env.reset(options={"prompts": [Example("00", meta={"seed": 1}, hidden="1", info={"shortest": 2})]})
    other.load_state(json.loads(json.dumps(env.state())))
    assert other.example_of(0).info == {"shortest": 2}
