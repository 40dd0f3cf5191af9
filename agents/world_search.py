"""Acting by a search that goes on through what the world replies; see ``worldmtp.search.conversation``."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldmtp.agents.action_masks import allowed_tokens, forbid
from worldmtp.agents.queues import ActedStep
from worldmtp.agents.search_config import ActingSearch
from worldmtp.agents.search_policy import OnPlan, acted_rows, planned
from worldmtp.agents.turns import conversations
from worldmtp.dynamics import Policy, WorldModel, acting_policy
from worldmtp.dynamics.conversations import ReplySource
from worldmtp.dynamics.turns import NOTHING, Turns
from worldmtp.envs import TextVectorEnv
from worldmtp.envs.imagined_world import takes_back, turn_limit
from worldmtp.envs.wrappers.action_mask import masks_around
from worldmtp.search import ConversationDynamics
from worldmtp.search.selection import QTransform


class WorldSearchPolicy:
    """Plans every token of a conversation through the replies to come; an ``ActingPolicy`` of the rows of ``env``.

    Texts are read by ``world_model``, whose logits and values are the policy's; ``replies`` says what the world would
    answer, drawn from ``generator``. Greedy is the search's best token, and sampling draws from
    ``worldmtp.search.acting``: of both the tree has no noise but that of the replies. Where ``infos`` has an
    ``action_mask``, what it forbids is no action of the root, and what ``VectorActionMask`` forbids everywhere is none
    of the nodes below; rules of a user's own are not known there. ``on_plan`` is told of every plan.

    Raises:
        ValueError: nobody replies in the environment, it takes back what was paid, or the world model takes a limited
            number of steps.
    """

    def __init__(
        self,
        world_model: WorldModel[Any],
        replies: ReplySource,
        env: TextVectorEnv,
        temperature: float,
        how: ActingSearch,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        on_plan: OnPlan | None = None,
        q_transform: QTransform | None = None,
    ) -> None:
        check_cut_off(env)
        self._q_transform = q_transform
        self._on_plan = on_plan
        self._max_turn = turn_limit(env)
        self._inner, self._replies, self._env, self._how, self._device = world_model, replies, env, how, device
        self._policy = masked_policy(acting_policy(temperature), env)
        self._dynamics = ConversationDynamics(world_model, replies, env.tokenizer.eos_id, self._max_turn, generator)
        self._said = SaidSoFar(env.tokenizer.eos_id, self._max_turn)

    @property
    def tokens_read(self) -> int:
        """Tokens that the world model has read in all searches, those of replies included."""
        return self._dynamics.tokens_read

    @torch.no_grad()
    def act(self, obs: dict[str, np.ndarray], infos: dict[str, Any], generator: torch.Generator | None) -> ActedStep:
        """Return one token a row; those of rows that have ended mean nothing and cost nothing.

        Raises:
            ValueError: a conversation had begun before this policy saw it.
        """
        tokens, lengths, prompts = obs["tokens"], obs["length"][:, 0], obs["prompt_length"][:, 0]
        live = np.nonzero(~self._env.done)[0]
        if not len(live):
            return ActedStep(torch.zeros(len(lengths), dtype=torch.long), torch.zeros(len(lengths)))
        self._said.observe(tokens, lengths, prompts, live)
        dataset, rows = self._env.dataset, torch.from_numpy(live).to(self._device)
        longest = int(lengths[live].max())
        input_ids = torch.from_numpy(tokens[live, :longest].copy()).to(self._device)
        mask = (torch.arange(longest)[None] < torch.from_numpy(lengths[live].copy())[:, None]).to(self._device)
        most = min(self._max_turn or dataset.max_steps, dataset.max_steps)
        turns, said, acted = self._said.turns(tokens, prompts, live, most)
        turns = Turns(**{name: values.to(self._device) for name, values in vars(turns).items()})
        state = self._dynamics.begin(
            self._inner.encode(input_ids, mask),
            self._replies.begin(turns, rows),
            said.to(self._device),
            torch.from_numpy(dataset.max_new - (lengths - prompts)[live]).to(self._device),
            (dataset.max_steps - acted).to(self._device),
        )
        allowed = allowed_tokens(infos)
        masked = None if allowed is None else allowed[live]
        chosen, found = planned(self._dynamics, state, self._policy, self._how, masked, generator, self._q_transform)
        step = acted_rows(chosen, live, len(lengths))
        if self._on_plan is not None:
            self._on_plan(live, found)
        self._said.answer(live, step.actions.numpy()[live])
        return step


def check_cut_off(env: TextVectorEnv) -> None:
    """Raise if a conversation that is cut off gives back what it was paid, for which no search plans.

    Raises:
        ValueError: it does.
    """
    if takes_back(env):
        raise ValueError(
            "truncation_score='zero' takes back what a conversation was paid where it is cut off, for which a search "
            "through replies does not plan; use truncation_score='score', or search to the end of the turn (dynamics "
            "mtp or oracle)."
        )


def masked_policy(policy: Policy, env: TextVectorEnv) -> Policy:
    """Return the policy without the tokens that no text of the environment may go on with."""
    masks = masks_around(env)
    if not masks:
        return policy
    everywhere = torch.from_numpy(np.logical_and.reduce([mask.everywhere for mask in masks]))

    def masked(logits: Float[Tensor, "state vocab"]) -> Float[Tensor, "state vocab"]:
        return policy(forbid(logits, everywhere.to(logits.device).expand(len(logits), -1)))

    return masked


class SaidSoFar:
    """What was said and heard in each row's conversation, turn by turn, read off the texts as they grow."""

    def __init__(self, eos_id: int, max_turn: int | None) -> None:
        self._eos_id, self._max_turn = eos_id, max_turn
        self._turns: dict[int, list[tuple[list[int], list[int]]]] = {}
        self._open: dict[int, list[int]] = {}
        self._length: dict[int, int] = {}
        self._answers: dict[int, int] = {}

    def observe(
        self,
        tokens: Int[np.ndarray, "env time"],
        lengths: Int[np.ndarray, " env"],
        prompts: Int[np.ndarray, " env"],
        rows: Int[np.ndarray, " row"],
    ) -> None:
        """Take in what the texts of these rows have become.

        Raises:
            ValueError: one is neither new nor what was known and answered.
        """
        for row in rows.tolist():
            length, before = int(lengths[row]), self._length.get(row)
            if length == prompts[row]:
                self._turns[row], self._open[row] = [], []
            elif length != before:
                answer = self._answers.get(row)
                if before is None or before > length or tokens[row, before] != answer:
                    raise ValueError(
                        f"the conversation of row {row} had begun before this policy saw it; make the policy before "
                        "the environment is reset, and ask it in every step."
                    )
                self._open[row].append(int(tokens[row, before]))
                if answer == self._eos_id or len(self._open[row]) == self._max_turn:
                    self._turns[row].append((self._open[row], tokens[row, before + 1 : length].tolist()))
                    self._open[row] = []
            self._length[row] = length

    def answer(self, rows: Int[np.ndarray, " row"], answers: Int[np.ndarray, " row"]) -> None:
        """Keep what these rows, as they were observed last, are answered."""
        self._answers.update(zip(rows.tolist(), answers.tolist(), strict=True))

    def turns(
        self,
        tokens: Int[np.ndarray, "env time"],
        prompts: Int[np.ndarray, " env"],
        rows: Int[np.ndarray, " row"],
        longest: int,
    ) -> tuple[Turns, Int[Tensor, "row said"], Int[Tensor, " row"]]:
        """Return the turns that are over, the one that is not, and how many tokens were said in all.

        A turn has room for ``longest`` tokens. Rewards and ends are not known here, and zero.
        """
        numbers = rows.tolist()
        openings = [tokens[row, : prompts[row]].tolist() for row in numbers]
        turns, still = conversations(
            openings, [self._turns[row] for row in numbers], [self._open[row] for row in numbers], longest
        )
        return turns, still, (turns.said != NOTHING).sum(dim=(1, 2)) + (still != NOTHING).sum(dim=1)
