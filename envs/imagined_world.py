"""Conversations with an imagined world: real openings, the policy's turns, and replies by a model of them.

The rows, the turns and the ends follow the rules of the real environment (``envs.rewards.TurnRewards``): a turn is
over with EOS or after ``max_turn`` tokens, the reply stands in the same row, a full row is truncated. What the world
says, pays and ends comes from a ``RepliesModel``. So the same policies and the same loop collect the episodes.

One thing is known and not modelled: an episode has at most ``max_turns`` turns, as real ones have had.

``infos["final_info"]`` of rows that ended: ``score`` (float64, the imagined return), ``num_tokens``, ``num_turns``,
``disagreement`` (float64, its mean over the turns) and ``reason`` ("ended", "novel", "turns" or "budget").

Rows stand still when they end; ``reset`` begins all rows anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Int

from worldmtp.dynamics.turns import NOTHING, RepliesModel, Turns, said_after
from worldmtp.envs.options import refusal_changes_nothing
from worldmtp.envs.rows import TextRows, VectorReset, VectorStep, batch_infos, check_actions, observation_space
from worldmtp.envs.task import TurnTask
from worldmtp.envs.text_env import TextVectorEnv
from worldmtp.envs.vector_env import TextGenVectorEnv


@dataclass(frozen=True)
class Novelty:
    """Optimism towards what the ensemble does not know: R-max (Brafman and Tennenholtz 2002) in imagination.

    A turn ends the episode and is paid ``bonus`` if no real conversation has had its reply (where ``pays_unheard``), or
    if the members disagree on that by more than ``threshold`` and these words are not ``tried`` there. The first counts
    where a model understands a world before it has seen it all: from rows and columns it foretells places where nobody
    has been, and its members agree on them. Without the last clause, members that have learnt little send the policy
    where it has been: they disagree on all they have heard.
    """

    threshold: float
    bonus: float
    tried: frozenset[tuple[int, ...]] = frozenset()
    """Keys of the turns that real conversations have had often enough (``said_after``)."""
    history: bool = False
    """Whether these keys are of all that was heard and said, or of the last text heard and what was said then."""
    pays_unheard: bool = True
    """Whether a reply that no real conversation has had is paid for by itself."""


class ImaginedWorldVectorEnv(TextVectorEnv):
    """Rows of conversations with a model of replies.

    Args:
        real: the environment whose tokens, budgets and turns these are; it is never stepped.
        model: what replies; it is read, and may learn on between resets.
        num_envs: rows.
        max_turns: turns after which a conversation is truncated.
        generator: of the replies' draws.
        novelty: what exploration is paid for, or None.

    Raises:
        ValueError: a size is not positive, or nobody replies in the real environment.
    """

    def __init__(
        self,
        real: TextVectorEnv,
        model: RepliesModel,
        num_envs: int,
        max_turns: int,
        generator: torch.Generator,
        novelty: Novelty | None = None,
    ) -> None:
        if num_envs < 1 or max_turns < 1:
            raise ValueError(f"num_envs={num_envs} and max_turns={max_turns} must be at least 1.")
        self.num_envs, self.max_turns = num_envs, max_turns
        self.metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}
        self.render_mode = None
        self._model, self._generator, self._novelty = model, generator, novelty
        # The questions, tokens and budgets are the real environment's; its scorer is never asked here.
        self._dataset, self._scorer, self._eos_terminates = real.dataset, real.scorer, False
        self._max_turn, self._takes_back = turn_limit(real), takes_back(real)
        dataset, tokenizer = self.dataset, self.tokenizer
        width = dataset.max_prompt + dataset.max_new
        self.single_observation_space: spaces.Space[Any] = observation_space(width, tokenizer.vocab_size)
        self.single_action_space: spaces.Space[Any] = spaces.Discrete(tokenizer.vocab_size)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rows: TextRows | None = None
        self.num_novel = 0
        """Turns since the reset that were paid for being unknown."""

    @property
    def done(self) -> Bool[np.ndarray, " row"]:
        """Return the rows that have ended, as a new array."""
        return self._begun().done.copy()

    @property
    def num_turns(self) -> int:
        """Return how many turns have been imagined since the reset."""
        return int(self._turn.sum())

    @property
    def disagreement(self) -> float:
        """Return the ensemble's mean disagreement over these turns, in [0, 1]."""
        return float(self._doubt.sum() / max(1, self.num_turns))

    @property
    def believed_disagreement(self) -> float:
        """Return its mean over the turns that were not paid for being unknown."""
        return self._believed_doubt / max(1, self.num_turns - self.num_novel)

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> VectorReset:
        """Begin a conversation in every row, with the option ``openings``: token ids, (row, opening), -1 for padding.

        Raises:
            ValueError: there is no opening for each row, or one is empty or too long.
        """
        with refusal_changes_nothing(self):
            super(TextVectorEnv, self).reset(seed=seed)
            openings = np.asarray((options or {}).get("openings", np.zeros((0, 0))), dtype=np.int64)
            lengths = (openings != NOTHING).sum(axis=-1) if openings.ndim == 2 else np.zeros(0, dtype=np.int64)
            if len(lengths) != self.num_envs or lengths.min() < 1 or lengths.max() > self.dataset.max_prompt:
                raise ValueError(
                    f"openings of shape {openings.shape}; expected {self.num_envs} rows of 1 to "
                    f"{self.dataset.max_prompt} token ids, padded with {NOTHING} on the right."
                )
        number, longest = self.num_envs, min(self._max_turn or self.max_new, self.max_new)
        rows = TextRows(number, self.dataset.max_prompt + self.dataset.max_new, self.tokenizer.pad_id)
        prompts = np.where(openings == NOTHING, self.tokenizer.pad_id, openings)
        rows.begin(np.arange(number), prompts, lengths)
        self._rows, self._openings = rows, torch.from_numpy(openings)
        self._said = torch.full((number, self.max_turns, longest), NOTHING)
        self._replies = torch.full((number, self.max_turns, self._model.max_reply), NOTHING)
        self._turn, self._turn_start = np.zeros(number, dtype=np.int64), rows.length.copy()
        self._num_acted, self._paid, self._doubt = np.zeros(number, dtype=np.int64), np.zeros(number), np.zeros(number)
        self.num_novel, self._believed_doubt = 0, 0.0
        return rows.observation(), {}

    def step(self, actions: Int[np.ndarray, " env"]) -> VectorStep:
        """Append one token to every row that has not ended; where that ends a turn, the imagined reply as well.

        Raises:
            ValueError: if the actions have the wrong shape, or one for a running row is not in the vocabulary.
            ResetNeeded: before the first reset.
        """
        rows = self._begun()
        live = ~rows.done
        actions = check_actions(actions, live, self.tokenizer.vocab_size)
        acting = np.flatnonzero(live)
        rows.append(acting, actions[acting])
        self._num_acted[acting] += 1
        rewards, reasons = np.zeros(self.num_envs), np.full(self.num_envs, "", dtype=object)
        over = live & (actions == self.tokenizer.eos_id)
        if self._max_turn is not None:
            over |= live & (rows.length - self._turn_start >= self._max_turn)
        if over.any():
            self._answer(np.flatnonzero(over), rewards, reasons)
        terminated = np.isin(reasons, ["ended", "novel"])
        open_rows = live & ~terminated
        reasons[open_rows & (self._turn >= self.max_turns)] = "turns"
        is_full = (rows.length - rows.prompt_length >= self.dataset.max_new) | (self._num_acted >= self.max_new)
        reasons[open_rows & is_full & (reasons == "")] = "budget"
        truncated = open_rows & (reasons != "")
        if self._takes_back:
            rewards[truncated] -= self._paid[truncated]
            self._paid[truncated] = 0.0
        rows.done |= terminated | truncated
        return rows.observation(), rewards, terminated, truncated, self._infos(terminated | truncated, reasons)

    def _answer(self, over: np.ndarray, rewards: np.ndarray, reasons: np.ndarray) -> None:
        """Let the model answer these rows' turns: replies go into the rows, what is paid and ended into the arrays."""
        rows, turn = self._begun(), self._turn[over]
        for row, now in zip(over.tolist(), turn.tolist(), strict=True):
            said = rows.response(row, int(self._turn_start[row]))
            self._said[row, now, : len(said)] = torch.from_numpy(said.copy())
        at = torch.from_numpy(over)
        imagined = self._model.imagine(self._turns(at), torch.from_numpy(turn), self._generator)
        self._replies[at, torch.from_numpy(turn)] = imagined.replies
        paid, ended = imagined.rewards.double().numpy(), imagined.ended.numpy()
        doubt = imagined.disagreement.double().numpy()
        self._doubt[over] += doubt
        novel = np.zeros(len(over), dtype=bool)
        if self._novelty is not None:
            keys = said_after(self._turns(at), torch.arange(len(at)), torch.from_numpy(turn), self._novelty.history)
            untried = np.array([key not in self._novelty.tried for key in keys])
            unheard = imagined.unheard.numpy() & self._novelty.pays_unheard
            novel = ((doubt > self._novelty.threshold) & untried) | unheard
            paid, ended = np.where(novel, self._novelty.bonus, paid), ended | novel
            reasons[over[novel]] = "novel"
        self.num_novel += int(novel.sum())
        self._believed_doubt += float(doubt[~novel].sum())
        reasons[over[ended & (reasons[over] == "")]] = "ended"
        rewards[over] = paid
        self._paid[over] += paid
        for row, reply in zip(over.tolist(), imagined.replies.numpy(), strict=True):
            room = int(rows.prompt_length[row]) + self.dataset.max_new - int(rows.length[row])
            rows.write(row, reply[reply != NOTHING][:room])
        self._turn[over] += 1
        self._turn_start[over] = rows.length[over]

    def _turns(self, rows: Int[torch.Tensor, " row"]) -> Turns:
        shape = (len(rows), self.max_turns)
        return Turns(
            opening=self._openings[rows],
            said=self._said[rows],
            replies=self._replies[rows],
            rewards=torch.zeros(shape),
            ended=torch.zeros(shape, dtype=torch.bool),
            mask=torch.ones(shape, dtype=torch.bool),
        )

    def _infos(self, ended: Bool[np.ndarray, " row"], reasons: np.ndarray) -> dict[str, Any]:
        if not ended.any():
            return {}
        rows = np.flatnonzero(ended)
        records = [
            {
                "score": float(self._paid[row]),
                "num_tokens": int(self._num_acted[row]),
                "num_turns": int(self._turn[row]),
                "disagreement": float(self._doubt[row] / max(1, self._turn[row])),
                "reason": str(reasons[row]),
                "group": int(row),
                "exact": False,
            }
            for row in rows.tolist()
        ]
        return {"final_info": batch_infos(records, rows, self.num_envs), "_final_info": ended.copy()}

    def _begun(self) -> TextRows:
        if self._rows is None:
            raise ResetNeeded("call reset before step.")
        return self._rows


def takes_back(env: TextVectorEnv) -> bool:
    """Return whether a conversation that is cut off gives back what it was paid."""
    kernel = env.kernel
    return isinstance(kernel, TextGenVectorEnv) and kernel.config.truncation_score == "zero"


def turn_limit(env: TextVectorEnv) -> int | None:
    """Return the tokens after which a turn is over without EOS, or None; of an environment in which a world replies.

    Raises:
        ValueError: nobody replies in it.
    """
    if not isinstance(env.task, TurnTask):
        raise ValueError(
            f"{type(env).__name__} has no world that replies, so that there are no replies to imagine; use an "
            "environment of conversations, or imagination=counterfactual."
        )
    return env.dataset.max_turn
