"""The real worlds of an environment's rows, asked what they would reply: a ``ReplySource`` that knows.

No episode under way is touched: a world of the same kind is told anew what was said in its row, and then what is only
imagined. It knows what the policy does not: a hidden number, a map. So planning in it is an upper bound for a world
that hides something, and of a world that shows all it is planning with the true law.

**Chance is not known ahead.** Where a world has dice (``worldmtp.envs.task.WorldOfChance``) each walk through it throws
its own behind what was really said, also where the episodes' are those of their seeds (``dice="start"``). A world
without ``throw_dice`` whose seed decides its luck plays that very luck.

A world that raises, or says what is no reply, ends the conversation and pays nothing, as in the environment.
Worlds are asked in this process, without the limits of the scorers: for evaluations, of worlds that are trusted.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from worldmtp.dynamics.conversations import Answered
from worldmtp.dynamics.states import StateTable
from worldmtp.dynamics.turns import NOTHING, Turns
from worldmtp.envs.fates import DICE_RANGE, dice_of
from worldmtp.envs.rewards import in_own_words
from worldmtp.envs.scoring import checked_reply
from worldmtp.envs.task import Example, Reply, TurnTask, WorldOfChance
from worldmtp.envs.text_env import TextVectorEnv
from worldmtp.envs.tokenizer import written_text

_MANY = 2**31


@dataclass(frozen=True)
class Ways(StateTable):
    """Conversations by their numbers in the list of those that were imagined since the last ``begin``."""

    number: Int[Tensor, " state"]


@dataclass(frozen=True)
class _Way:
    """What is said to the world of a row: really at first, then under these dice, if there are any."""

    row: int
    really: tuple[str, ...]
    imagined: tuple[str, ...] = ()
    dice: int | None = None


class WorldReplies:
    """Replies by worlds like those of ``env``; see the module.

    Raises:
        ValueError: nobody replies in the environment.
    """

    def __init__(self, env: TextVectorEnv) -> None:
        if not isinstance(env.task, TurnTask):
            raise ValueError(
                f"{type(env.task).__name__} has no world that replies, so that there is none to plan in; search over "
                "mtp or oracle."
            )
        self._env, self._task = env, env.task
        world = env.task.make_world()
        self._has_dice = isinstance(world, WorldOfChance) and world.has_dice
        self._ways: list[_Way] = []
        self._examples: dict[int, Example] = {}
        self._standing: dict[int, tuple[_Way, Any]] = {}
        """A world of each row, and what it was told."""
        self._known: dict[_Way, tuple[Reply, list[int]]] = {}

    @property
    def max_reply(self) -> int:
        """The room behind a prompt: no reply is heard beyond it."""
        return self._env.dataset.max_new

    def begin(self, turns: Turns, rows: Int[Tensor, " state"]) -> Ways:
        """Return the conversations of these rows, in which these turns were really said; earlier ones are forgotten."""
        self._ways, self._known = [], {}
        for row, said, number in zip(rows.tolist(), turns.said, turns.num_turns.tolist(), strict=True):
            example = self._env.example_of(row)
            if self._examples.get(row) is not example:
                self._examples[row] = example
                self._standing.pop(row, None)
            self._ways.append(_Way(row, tuple(self._text(turn) for turn in said[:number])))
        return Ways(torch.arange(len(rows), device=rows.device))

    def turns_left(self, heard: Ways) -> Int[Tensor, " state"]:
        """Return more than there is room for: the world itself says when it is over."""
        return torch.full_like(heard.number, _MANY)

    def answer(self, heard: Ways, said: Int[Tensor, "state said"], generator: torch.Generator) -> tuple[Ways, Answered]:
        """Return what the worlds reply; dice are thrown with the first turn that is imagined."""
        replies = torch.full((len(said), self.max_reply), NOTHING)
        answers = []
        first = len(self._ways)
        for row, (number, turn) in enumerate(zip(heard.number.tolist(), said, strict=True)):
            way = self._ways[number]
            dice = way.dice
            if self._has_dice and dice is None:
                dice = int(torch.randint(DICE_RANGE, (), generator=generator, device=generator.device))
            way = _Way(way.row, way.really, (*way.imagined, self._text(turn)), dice)
            self._ways.append(way)
            answered, ids = self._reply(way)
            answers.append(answered)
            replies[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        device = said.device
        rewards = torch.tensor([one.reward for one in answers], dtype=torch.float64, device=device)
        ended = torch.tensor([one.terminated or one.truncated for one in answers], device=device)
        numbers = torch.arange(first, len(self._ways), device=device)
        return Ways(numbers), Answered(replies.to(device), rewards, ended)

    def _text(self, turn: Int[Tensor, " said"]) -> str:
        return written_text(self._env.tokenizer, turn[turn != NOTHING].tolist()).strip()

    def _reply(self, way: _Way) -> tuple[Reply, list[int]]:
        """Return what is replied, and those of its tokens for which there is room."""
        if way not in self._known:
            standing = self._standing.pop(way.row, None)  # what a step that raises leaves behind is not to be used
            world: Any = self._task.make_world() if standing is None else standing[1]
            before = replace(way, imagined=way.imagined[:-1])
            try:
                if standing is None or standing[0] != before:
                    self._tell(world, before)
                reply = in_own_words(checked_reply(world.step(way.imagined[-1]), world), way.really + way.imagined)
                self._known[way] = reply, self._env.tokenizer.encode(reply.text)[: self.max_reply]
                self._standing[way.row] = (way, world)
            except Exception:  # noqa: BLE001 - whatever a user's world raises
                self._known[way] = Reply("", 0.0, terminated=True, truncated=False), []
        return self._known[way]

    def _tell(self, world: Any, way: _Way) -> None:
        """Tell a world a conversation from its start."""
        example = self._examples[way.row]
        world.reset(example.meta["seed"])
        if (dice := dice_of(example)) is not None:
            world.throw_dice(dice)
        for text in way.really:
            world.step(text)
        if way.dice is not None:
            world.throw_dice(way.dice)
        for text in way.imagined:
            world.step(text)
