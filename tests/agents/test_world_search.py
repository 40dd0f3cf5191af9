"""Acting by a search through replies: a world that nobody could solve by looking one token ahead, and what is heard."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from worldmtp.agents.answers import Answering
from worldmtp.agents.search_config import ActingSearch
from worldmtp.agents.world_search import SaidSoFar, WorldSearchPolicy
from worldmtp.dynamics import make_world_model
from worldmtp.dynamics.conversations import ForeseenReplies
from worldmtp.dynamics.turns import NOTHING, ImaginedReplies, Turns
from worldmtp.envs import CharTokenizer, Example, TextGenVectorEnv
from worldmtp.envs.world_replies import WorldReplies
from worldmtp.envs.worlds.task import WorldTask
from worldmtp.envs.wrappers.action_mask import VectorActionMask
from worldmtp.model import MTPModel
from worldmtp.search import SearchConfig

N = NOTHING


class Lock:
    """Three turns of a letter: the opening's letter, then the other one twice, pay 1; the reply is how many are right.

    A wrong letter is answered with "=", and the lock stays as it was; after the third turn it is over.
    """

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        self.code, self.right, self.turn = ("abb", "baa")[seed % 2], 0, 0
        return self.code[0], {"hidden": ""}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        is_right = text == self.code[self.right]
        self.right += is_right
        is_open = self.right == 3
        reply = "a" * self.right if is_right else "="
        return reply, float(is_open), is_open or self.turn == 3, False, {"is_success": is_open}


class LockReplies:
    """What a lock replies, from the opening and what was said."""

    max_reply = 3

    def __init__(self, tokenizer: CharTokenizer) -> None:
        self._tokenizer = tokenizer

    def imagine(self, turns: Turns, turn: torch.Tensor, generator: torch.Generator) -> ImaginedReplies:
        replies, many = torch.full((len(turns), 3), N), (len(turns),)
        rewards, ended = torch.zeros(many), torch.zeros(many).bool()
        for row, now in enumerate(turn.tolist()):
            world, opening = Lock(), self._tokenizer.decode(turns.opening[row].tolist())
            world.reset("ab".index(opening))
            for number in range(now + 1):
                text, paid, over, _, _ = world.step(self._tokenizer.decode(turns.said[row, number].tolist()))
                heard = turns.replies[row, number]
                assert number == now or self._tokenizer.decode(heard[heard != N].tolist()) == text
            ids = torch.tensor(self._tokenizer.encode(text))
            replies[row, : len(ids)], rewards[row], ended[row] = ids, paid, over
        return ImaginedReplies(replies, rewards, ended, torch.zeros(many), torch.zeros(many).bool())


def locks(num_envs: int, **fields: Any) -> TextGenVectorEnv:
    return TextGenVectorEnv(
        num_envs,
        task=WorldTask(Lock, num_seeds=40),
        tokenizer=CharTokenizer("ab=cd"),
        max_prompt=1,
        max_new=12,
        max_turn=1,
        pool_size=8,
        **fields,
    )


def openings() -> list[Example]:
    return [Example(prompt="ab"[seed], meta={"seed": seed}) for seed in (0, 1)]


@pytest.fixture
def model(tiny_model: Callable[..., MTPModel]) -> MTPModel:
    """Random, and its value heads as they were made: the same everywhere."""
    return tiny_model()


@pytest.mark.parametrize(("rule", "dynamics"), [("puct", "world"), ("gumbel", "replies")])
def test_a_lock_is_opened_three_turns_ahead(rule: str, dynamics: str, model: MTPModel) -> None:
    """One reward, behind two replies, is what the search sees; by chance it is opened once in eight tries."""
    env = locks(2)
    masked = VectorActionMask(env, alphabet="ab", forbid_eos=True)
    examples = openings()
    source = ForeseenReplies(LockReplies(env.tokenizer), max_turns=3)  # type: ignore[arg-type]
    answering = Answering(model, masked, examples, 1.0, seed=0, replies=source)
    found = answering.searched(ActingSearch(rule, dynamics, SearchConfig(16, width=2, gamma=0.9)))
    assert found.score.tolist() == [1.0] * 2
    assert found.way == f"{rule} through {dynamics}, 16 simulations"
    # A token each for the text of 1 + 3 + (1 + 2 + 3) and one and more for each of 3 x 16 simulations.
    assert found.trunk_tokens >= 10 + 3 * 16


@pytest.mark.parametrize("dynamics", ["world", "oracle"])
def test_explained_answers_are_those_of_the_search_with_every_plan(dynamics: str, model: MTPModel) -> None:
    """A lock's letters are the policy's, its replies and the opening are the world's."""
    env = locks(2)
    masked = VectorActionMask(env, alphabet="ab", forbid_eos=True)
    answering = Answering(model, masked, openings(), 1.0, seed=0)
    how = ActingSearch("puct", dynamics, SearchConfig(16, max_depth=3, width=2))
    found, expected = answering.explained(how), answering.searched(how)
    assert found.answers.score.tolist() == expected.score.tolist()
    assert (found.answers.way, found.answers.trunk_tokens) == (expected.way, expected.trunk_tokens)
    if dynamics == "world":
        # The opening, then each letter with what it is answered: a, aa and aaa.
        assert [env.tokenizer.decode(list(text.tokens)) for text in found.texts] == ["aaabaabaaa", "bbaaaaaaaa"]
        heard = (True, False, True, False, True, True, False, True, True, True)
        assert [text.is_heard for text in found.texts] == [heard] * 2
    for text, plans in zip(found.texts, found.plans, strict=True):
        places = [place for place, is_heard in enumerate(text.is_heard) if not is_heard]
        assert [len(planned.before.tokens) for planned in plans] == places
        for place, planned in zip(places, plans, strict=True):
            assert planned.before.tokens == text.tokens[:place]
            assert planned.before.is_heard == text.is_heard[:place]
            assert planned.written == (text.tokens[place],)
            assert sum(node.visits for node in planned.tree) == 16
            assert [node.token for node in planned.tree if node.is_chosen] == [text.tokens[place]]
            # Turns of one letter: over the trunk alone nothing is known behind it, and else every visit is answered.
            for node in planned.tree:
                told = [reply.visits for reply in node.replies]
                assert sum(told) == (node.visits if dynamics == "world" else 0)


def test_one_token_ahead_the_lock_stays_shut(model: MTPModel) -> None:
    """So that it is the replies that open it."""
    env = locks(2)
    masked = VectorActionMask(env, alphabet="ab", forbid_eos=True)
    examples = openings()
    how = ActingSearch("puct", "world", SearchConfig(6, max_depth=1, width=2, gamma=0.9))
    trunk, generator = make_world_model("oracle", model, torch.Generator()), torch.Generator().manual_seed(0)
    first = WorldSearchPolicy(trunk, WorldReplies(masked), masked, 1.0, how, generator)
    obs, infos = masked.reset(options={"split": "train", "prompts": examples})
    acted = first.act(obs, infos, None)
    # Nothing is paid and all values are alike: the prior decides, which is not to say the first letter of each code.
    with torch.no_grad():
        logits = model.trunk(torch.from_numpy(obs["tokens"][:, :1])).logits[:, 0]
    letters = env.tokenizer.encode("ab")
    best = logits[:, letters].argmax(dim=1)
    assert acted.actions.tolist() == [letters[one] for one in best.tolist()]


def test_what_was_said_and_heard_by_hand() -> None:
    """Row 0 says 3 4, hears 5 6, says 3 and EOS (1), hears nothing, says 4; row 2 begins anew; row 1 is done."""
    so_far = SaidSoFar(eos_id=1, max_turn=2)
    prompts, rows = np.array([1, 1, 2]), np.array([0, 2])

    def seen(*texts: list[int]) -> Any:
        tokens = np.zeros((3, 9), dtype=np.int64)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = text
        return tokens, np.array([len(text) for text in texts]), prompts, rows

    steps = [
        ([[2], [2], [2, 2]], [3, 3]),
        ([[2, 3], [2], [2, 2, 3]], [4, 1]),
        ([[2, 3, 4, 5, 6], [2], [2, 2, 3, 1, 7]], [3, 3]),
        ([[2, 3, 4, 5, 6, 3], [2], [5, 5]], [1, 4]),
        ([[2, 3, 4, 5, 6, 3, 1], [2], [5, 5, 4]], [4, 4]),
    ]
    for texts, answers in steps:
        observed = seen(*texts)
        so_far.observe(*observed)
        so_far.answer(rows, np.array(answers))
    last = seen([2, 3, 4, 5, 6, 3, 1, 4], [2], [5, 5, 4, 4])
    so_far.observe(*last)
    so_far.observe(*last)  # asked again
    turns, still, number = so_far.turns(last[0], prompts, rows, 2)
    assert turns.opening.tolist() == [[2, N], [5, 5]]
    assert turns.said.tolist() == [[[3, 4], [3, 1]], [[4, 4], [N, N]]]
    assert turns.replies.tolist() == [[[5, 6], [N, N]], [[N, N], [N, N]]]
    assert turns.num_turns.tolist() == [2, 1]
    assert (still.tolist(), number.tolist()) == ([[4, N], [N, N]], [5, 2])
    with pytest.raises(ValueError, match="the conversation of row 2 had begun before this policy saw it"):
        so_far.observe(*seen([2, 3, 4, 5, 6, 3, 1, 4], [2], [5, 5, 4, 3, 3]))


def test_who_has_nobody_to_ask_is_told_before_anything_is_answered(
    model: MTPModel, text_env: Callable[[int], TextGenVectorEnv]
) -> None:
    env = locks(1)
    ways = Answering(model, env, openings(), 1.0, seed=0)
    with pytest.raises(ValueError, match="needs a model of them, which a run with imagination=episodes learns"):
        ways.check_search(ActingSearch("puct", "replies"))
    ways.check_search(ActingSearch("puct", "world"))
    answers = text_env(1)
    for dynamics in ("world", "replies"):
        with pytest.raises(ValueError, match="has no world that replies"):
            Answering(model, answers, answers.examples("heldout", 1, 0), 1.0, seed=0).check_search(
                ActingSearch("puct", dynamics)
            )


@pytest.mark.parametrize("dynamics", ["world", "replies"])
def test_what_is_taken_back_at_a_cut_off_is_not_planned_for(dynamics: str, model: MTPModel) -> None:
    env = locks(2, truncation_score="zero")
    ways = Answering(model, env, openings(), 1.0, seed=0, replies=ForeseenReplies(LockReplies(env.tokenizer), 3))
    with pytest.raises(ValueError, match="takes back what a conversation was paid where it is cut off"):
        ways.check_search(ActingSearch("puct", dynamics))
    ways.check_search(ActingSearch("puct", "oracle"))
