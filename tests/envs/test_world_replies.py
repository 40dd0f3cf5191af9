"""The real worlds as a source of replies: what they would say, without touching the episodes under way."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from worldmtp.dynamics.turns import NOTHING, Turns
from worldmtp.envs import CharTokenizer, TextGenVectorEnv
from worldmtp.envs.make import make_text_vec
from worldmtp.envs.world_replies import WorldReplies
from worldmtp.envs.worlds.task import WorldTask


def said_so_far(env: TextGenVectorEnv, said: list[list[str]]) -> Turns:
    """Turns of one token each; what was heard is not read."""
    number, most = [len(one) for one in said], max(1, *map(len, said))
    tokens = torch.full((len(said), most, 1), NOTHING)
    for row, turns in enumerate(said):
        for turn, text in enumerate(turns):
            tokens[row, turn] = torch.tensor(env.tokenizer.encode(text))
    mask = torch.arange(most) < torch.tensor(number)[:, None]
    nothing = torch.zeros(mask.shape)
    return Turns(torch.full((len(said), 1), NOTHING), tokens, torch.full_like(tokens, NOTHING), nothing, ~mask, mask)


def answers(source: WorldReplies, env: TextGenVectorEnv, ways: Any, text: str, seed: int = 0) -> tuple[Any, list[Any]]:
    said = torch.tensor(env.tokenizer.encode(text)).expand(len(ways), 1)
    ways, answered = source.answer(ways, said, torch.Generator().manual_seed(seed))
    replies = [env.tokenizer.decode(reply[reply != NOTHING].tolist()) for reply in answered.replies]
    return ways, list(zip(replies, answered.rewards.tolist(), answered.ended.tolist(), strict=True))


def test_what_would_be_replied_is_what_is_replied() -> None:
    """A grid with hidden walls: each real turn was foretold, by one who looked at other turns as well."""
    env = make_text_vec("worldmtp/GridWorld-v0", 3, max_turn=1, pool_size=8)
    env.reset(seed=0)
    source, said, rng = WorldReplies(env), [[], [], []], np.random.default_rng(1)
    for _ in range(16):
        before = str(env.state())
        ways = source.begin(said_so_far(env, said), torch.arange(3))
        other, _ = answers(source, env, ways, "s")
        answers(source, env, other, "w")
        found = {text: answers(source, env, ways, text)[1] for text in "nesw"}
        assert str(env.state()) == before
        chosen = [str(rng.choice(list("nesw"))) for _ in range(3)]
        live = ~env.done
        actions = np.array([env.tokenizer.encode(text)[0] for text in chosen])
        _, rewards, terminated, truncated, infos = env.step(actions)
        for row in np.flatnonzero(live):
            told = infos["final_info"] if terminated[row] or truncated[row] else infos
            expected = (told["reply"][row], float(rewards[row]), bool(terminated[row] or truncated[row]))
            assert found[chosen[row]][row] == expected
            said[row].append(chosen[row])
    assert env.done.any(), "some have come to an end, else ends were not compared"


def test_dice_are_thrown_anew_for_every_walk_and_kept_within_it() -> None:
    """Pig: 300 rolls from one place are fair dice, and a walk that rolls and holds is paid what it rolled.

    A fair die shows each face of 300 rolls 24 to 82 times but for once in ten thousand tests.
    """
    env = make_text_vec("worldmtp/Pig-v0", 1, max_turn=1, pool_size=8)
    env.reset(seed=0)
    source = WorldReplies(env)
    target = int(env.example_of(0).prompt.split("/")[0])
    ways = source.begin(said_so_far(env, [[]]), torch.arange(1)).select(torch.zeros(300, dtype=torch.long))
    rolled, told = answers(source, env, ways, "r")
    faces = Counter(int(reply) for reply, _, _ in told)
    assert set(faces) == set(range(1, 7))
    assert all(24 <= number <= 82 for number in faces.values()), faces
    # All walks share one world, which is told each of them from the start: the die is the one it had shown.
    _, held = answers(source, env, rolled, "h")
    banked = [0 if reply == "1" else int(reply) for reply, _, _ in told]
    assert [int(reply) for reply, _, _ in held] == banked
    assert [paid for _, paid, _ in held] == pytest.approx([one / target for one in banked])


def test_what_was_really_said_and_thrown_stands() -> None:
    """Behind a real roll the dice that fell are known, and only those to come are thrown."""
    env = make_text_vec("worldmtp/Pig-v0", 1, max_turn=1, pool_size=8)
    env.reset(seed=3)
    _, _, _, _, infos = env.step(np.array(env.tokenizer.encode("r")))
    die = int(infos["reply"][0])
    source = WorldReplies(env)
    ways = source.begin(said_so_far(env, [["r"]]), torch.arange(1)).select(torch.zeros(20, dtype=torch.long))
    _, held = answers(source, env, ways, "h")
    assert {int(reply) for reply, _, _ in held} == {0 if die == 1 else die}
    assert len({reply for reply, _, _ in answers(source, env, ways, "r")[1]}) > 1


def test_luck_that_the_seed_decides_is_not_known_ahead_either() -> None:
    """Pig whose dice are those of its start: 40 walks show one face alone but once in 6^39 tests."""
    task = WorldTask("worldmtp.envs.worlds.dice:Pig", dice="start")
    env = TextGenVectorEnv(
        1, task=task, tokenizer=CharTokenizer("0123456789/:rh?"), max_prompt=6, max_new=40, max_turn=1, pool_size=4
    )
    env.reset(seed=0)
    source = WorldReplies(env)
    ways = source.begin(said_so_far(env, [[]]), torch.arange(1)).select(torch.zeros(40, dtype=torch.long))
    assert len({reply for reply, _, _ in answers(source, env, ways, "r")[1]}) > 1


class Parrot:
    """Repeats what it is told, raises at "b" and has no letter for "c"."""

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        return "ab"[seed % 2], {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if text == "b":
            raise RuntimeError("a world of a user's own")
        return "!" if text == "c" else text, 0.5, False, False, {}


@pytest.mark.filterwarnings("ignore:scoring 'b':RuntimeWarning", "ignore:scoring 'c':RuntimeWarning")
def test_a_world_that_fails_ends_as_it_does_in_the_environment() -> None:
    """Each token of the vocabulary, padding and EOS included, is answered as the environment answers it."""
    tokenizer = CharTokenizer("abc")
    for token in range(tokenizer.vocab_size):
        env = TextGenVectorEnv(
            1,
            task=WorldTask(Parrot, num_seeds=9),
            tokenizer=tokenizer,
            max_prompt=1,
            max_new=9,
            max_turn=1,
            pool_size=4,
        )
        env.reset(seed=0)
        source = WorldReplies(env)
        ways = source.begin(said_so_far(env, [[]]), torch.arange(1))
        ways, told = source.answer(ways, torch.tensor([[token]]), torch.Generator())
        _, rewards, terminated, _, infos = env.step(np.array([token]))
        heard = "" if terminated[0] else infos["reply"][0]
        replies = tokenizer.decode(told.replies[0][told.replies[0] != NOTHING].tolist())
        assert (replies, told.rewards.tolist(), told.ended.tolist()) == (heard, rewards.tolist(), terminated.tolist())
        if not terminated[0]:  # and the next turn is asked of a world that stands where it should
            assert answers(source, env, ways, "a")[1] == [("a", 0.5, False)]


def test_where_nobody_replies_there_is_no_world_to_plan_in() -> None:
    with pytest.raises(ValueError, match="has no world that replies, so that there is none to plan in"):
        WorldReplies(make_text_vec("worldmtp/Reverse-v0", 1))
