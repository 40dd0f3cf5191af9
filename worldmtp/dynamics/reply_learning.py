"""How a model of replies learns: a replay of conversations, and gradient steps until the held-out error rises.

After each batch of real conversations some blocks of updates are made. The error that decides is held out by
cross-fitting (``replies.held_out``) over the newest conversations. Learning goes on while it is flat, because a rare
reward changes the mean error by next to nothing, and stops when it has risen twice; then the best weights come back.

With ``context="auto"`` a model that sees the last turn alone and one that sees the history learn side by side for
``settle_batches`` batches; the one that predicts the held-out replies better is asked, and kept.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from worldmtp.dynamics.replies import ReplyModel, held_out, trained_on
from worldmtp.dynamics.reply_config import ReplyModelConfig
from worldmtp.dynamics.reply_network import ReplySizes
from worldmtp.dynamics.turns import Turns

_BLOCK = 8
"""Gradient steps between two looks at the held-out error."""
_JUDGED = 32
"""Conversations that the held-out error is of: the newest."""
_RISE = 0.02
"""Nats above the best that count as a rise."""
_LEARNT = 0.01
"""Nats below which there is nothing left to learn, once rewards are not rare."""


class TurnReplay:
    """The newest conversations, in their order; each keeps its number, which decides who trains on it.

    Conversations of one group begin alike and so have one number: a member that has seen one of them is no judge of
    another.

    Those without a whole turn are left out: nothing can be learnt from them, and an error over no turns is none.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._turns: Turns | None = None
        self._numbers = torch.zeros(0, dtype=torch.int64)
        self.num_seen = 0
        """Numbers that have been given: of conversations, or of their groups."""

    def __len__(self) -> int:
        return 0 if self._turns is None else len(self._turns)

    @property
    def turns(self) -> Turns:
        """Return all conversations that are kept.

        Raises:
            ValueError: there are none.
        """
        if self._turns is None:
            raise ValueError("the replay of conversations is empty; add real ones before learning from it.")
        return self._turns

    @property
    def numbers(self) -> Int[Tensor, " episode"]:
        """Return the number of each conversation that is kept; the first ever is 0, and those of a group share one."""
        return self._numbers

    def add(self, turns: Turns, group: Int[Tensor, " episode"] | None = None) -> None:
        """Keep more conversations that have a turn, and drop the oldest beyond capacity.

        ``group`` says which of them began alike; without it, none did.
        """
        rows = torch.nonzero(turns.num_turns)[:, 0]
        turns = turns.select(rows)
        if not len(turns):
            return
        alike = rows if group is None else group.cpu()[rows]
        found, place = torch.unique(alike, return_inverse=True)
        numbers = torch.cat([self._numbers, self.num_seen + place])
        joined = turns if self._turns is None else Turns.cat([self._turns, turns])
        kept = torch.arange(max(0, len(joined) - self._capacity), len(joined))
        self._turns, self._numbers = joined.select(kept), numbers[kept]
        self.num_seen += len(found)

    def newest(self, num_episodes: int) -> tuple[Turns, Int[Tensor, " episode"]]:
        """Return the newest conversations, or all there are, and their numbers."""
        rows = torch.arange(max(0, len(self) - num_episodes), len(self))
        return self.turns.select(rows), self.numbers[rows]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        turns = None if self._turns is None else dict(vars(self._turns))
        return {"num_seen": self.num_seen, "numbers": self._numbers, "turns": turns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.num_seen = int(state["num_seen"])
        self._turns = None if state["turns"] is None else Turns(**state["turns"])
        # Before groups were told apart, numbers were those of conversations.
        counted = torch.arange(self.num_seen - len(self), self.num_seen)
        self._numbers = state.get("numbers", counted)


def is_rewarded(returns: Float[Tensor, " episode"], lowest: float) -> Tensor:
    """Return which conversations were paid more than the lowest return that there has been."""
    return returns > lowest + 1e-6


def draw_episodes(
    replay: TurnReplay, config: ReplyModelConfig, lowest: float, generator: torch.Generator
) -> tuple[Int[Tensor, " drawn"], Float[Tensor, " drawn"]]:
    """Return rows of the replay and what each counts, so that the weighted mean is that of uniform draws.

    Uniform, with a fixed share of rewarded ones while these are rarer among the recent; these count less in return.
    Without the weights a world of chance would be learnt as kinder than it is: of two episodes that said the same, the
    one that chance favoured would be seen more often. A weight is the density of a uniform draw over that of the draws
    made (the balance heuristic of Veach & Guibas 1995, https://doi.org/10.1145/218380.218498).
    """
    size, total = config.batch_size_episodes, len(replay)
    drawn, weights = torch.randint(total, (size,), generator=generator), torch.ones(size)
    returns = replay.turns.returns
    recent = torch.arange(max(0, total - config.recent_episodes), total)
    rewarded = recent[is_rewarded(returns[recent], lowest)]
    if 0 < len(rewarded) < config.rewarded_share * len(recent):
        number = min(round(config.rewarded_share * size), size - 1)  # else others would never be drawn
        drawn[:number] = rewarded[torch.randint(len(rewarded), (number,), generator=generator)]
        favoured = torch.isin(drawn, rewarded) * (number * total / len(rewarded))
        weights = size / (size - number + favoured)
    return drawn, weights


@dataclass(frozen=True)
class LearnedReplies:
    """What a batch taught: the held-out error before and after, in nats a reply, and the steps it took."""

    nats_before: float
    nats: float
    num_updates: int


class ReplyLearner:
    """One model of replies and its optimiser."""

    def __init__(self, model: ReplyModel, config: ReplyModelConfig) -> None:
        self.model, self._config = model, config
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.99),
            foreach=True,
        )

    def learn(self, replay: TurnReplay, lowest: float, generator: torch.Generator) -> LearnedReplies:
        """Train on the replay until the held-out error rises, at most ``num_updates`` steps.

        Before any conversation has been paid more than ``lowest``, steps are fewer and smaller (``first_num_updates``).

        Raises:
            FloatingPointError: the error is not finite.
        """
        found = bool(is_rewarded(replay.turns.returns, lowest).any())
        config = self._config if found else self._config.at_first()
        self.model.train()
        before = best = self.held_out_nats(replay)
        kept, rises, steps = self._state(), 0, 0
        returns = replay.newest(config.recent_episodes)[0].returns
        is_rare = float(is_rewarded(returns, lowest).float().mean()) < config.rewarded_share
        while steps < config.num_updates and rises < 2:
            for _ in range(min(_BLOCK, config.num_updates - steps)):
                self._step(replay, *draw_episodes(replay, config, lowest, generator))
                steps += 1
            nats = self.held_out_nats(replay)
            if nats > best + _RISE:
                rises += 1
            elif nats < best:
                best, rises, kept = nats, 0, self._state()
            if nats < _LEARNT and not is_rare:
                break
        if rises:
            self._restore(kept)
        self.model.eval()
        return LearnedReplies(before, self.held_out_nats(replay), steps)

    @torch.no_grad()
    def held_out_nats(self, replay: TurnReplay, num_episodes: int = _JUDGED) -> float:
        """Return the mean held-out error over the newest conversations' turns, in nats."""
        turns, numbers = replay.newest(num_episodes)
        return float(held_out(self.model.nats(turns), by_turn(numbers, turns)).mean())

    @torch.no_grad()
    def shuffled_nats(self, replay: TurnReplay, generator: torch.Generator) -> float:
        """Return the same error where each turn's words are those of another turn: what ignoring actions costs."""
        turns, numbers = replay.newest(_JUDGED)
        return float(held_out(self.model.nats(shuffled(turns, generator)), by_turn(numbers, turns)).mean())

    def _step(self, replay: TurnReplay, rows: Int[Tensor, " drawn"], counts: Float[Tensor, " drawn"]) -> None:
        turns, numbers = replay.turns.select(rows), replay.numbers[rows]
        weights = trained_on(by_turn(numbers, turns), self.model.num_members) * by_turn(counts, turns)
        loss = self.model.num_members * (weights * self.model.nats(turns)).sum() / weights.sum()
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(f"the error of the model of replies is {float(loss)}; the update was not applied.")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.max_grad_norm)
        self.optimizer.step()

    def _state(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]

    @torch.no_grad()
    def _restore(self, kept: list[Tensor]) -> None:
        for parameter, value in zip(self.model.parameters(), kept, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def by_turn(values: Shaped[Tensor, " episode"], turns: Turns) -> Shaped[Tensor, " turn"]:
    """Return what its conversation has for each turn there is."""
    return values[:, None].expand(turns.mask.shape)[turns.mask]


def shuffled(turns: Turns, generator: torch.Generator) -> Turns:
    """Return the conversations with what was said in each turn moved to another one."""
    said = turns.said.clone()
    words = said[turns.mask]
    said[turns.mask] = words[torch.randperm(len(words), generator=generator)]
    return Turns(turns.opening, said, turns.replies, turns.rewards, turns.ended, turns.mask)


class ReplyModels:
    """The contexts under comparison; ``best`` is the one that is asked."""

    def __init__(
        self,
        sizes: ReplySizes,
        config: ReplyModelConfig,
        reward_bins: Float[Tensor, " bins"],
        generator: torch.Generator,
        blind: bool = False,
    ) -> None:
        contexts = ("turn", "history") if config.context == "auto" else (config.context,)
        self._config, self._num_batches = config, 0

        def make(context: str, generator: torch.Generator) -> ReplyLearner:
            model = ReplyModel(sizes, config, context == "history", reward_bins, generator, blind)
            return ReplyLearner(model, config)

        self._contexts, self._make = contexts, make
        self._learners = {context: make(context, generator) for context in contexts}
        self._nats = dict.fromkeys(contexts, float("inf"))
        self.context = contexts[0]
        """The context that predicts the held-out replies best."""

    @property
    def best(self) -> ReplyLearner:
        """Return the model to be asked."""
        return self._learners[self.context]

    @property
    def settled(self) -> str | None:
        """Return the context that is kept; None while there is more than one."""
        return self.context if len(self._learners) == 1 else None

    @property
    def has_learnt(self) -> bool:
        """Whether there were replies to learn from."""
        return self._num_batches > 0

    def learn(self, replay: TurnReplay, lowest: float, generator: torch.Generator) -> LearnedReplies:
        """Train all contexts on the replay and choose among them; return what the chosen one learnt."""
        learned = {name: learner.learn(replay, lowest, generator) for name, learner in self._learners.items()}
        # Only the newest conversations speak for what is needed now; averaging them over batches steadies the choice.
        for name, result in learned.items():
            known = self._nats[name]
            self._nats[name] = result.nats if known == float("inf") else (known + result.nats) / 2
        self.context = min(self._learners, key=lambda name: self._nats[name])
        self._num_batches += 1
        if self._num_batches >= self._config.settle_batches:
            self._learners = {self.context: self._learners[self.context]}
        return learned[self.context]

    def observe(self, turns: Turns) -> None:
        """Note what the world has said, paid and ended, in all models."""
        for learner in self._learners.values():
            learner.model.observe(turns)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {
            "learners": {name: learner.state_dict() for name, learner in self._learners.items()},
            "nats": dict(self._nats),
            "context": self.context,
            "num_batches": self._num_batches,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, before or after these models have settled for one context.

        Raises:
            ValueError: a context is not under comparison here.
        """
        unknown = sorted(set(state["learners"]) - set(self._contexts))
        if unknown:
            raise ValueError(
                f"the saved models of replies have the context {unknown[0]!r}, and here there is "
                f"world_model.replies.context={self._config.context}; set it to {unknown[0]}, or to auto."
            )
        blank = torch.Generator()  # of weights that are overwritten
        self._learners = {
            name: self._learners[name] if name in self._learners else self._make(name, blank)
            for name in state["learners"]
        }
        for name, learner in self._learners.items():
            learner.load_state_dict(state["learners"][name])
        self._nats, self.context = dict(state["nats"]), state["context"]
        self._num_batches = int(state["num_batches"])
